"""The command line: bad input ends in one line, exit code 2, and nothing written."""

import subprocess
import sys

import pytest

from tests import commands

CONFIG = "--config=configs/v2_ablation.py:quick"

BAD_INPUT = {
    "no config": ([], "no --config given"),
    "missing config": (["--config=configs/v3.py"], "no config file configs/v3.py"),
    "misspelt config": (["--config=configs/v2_ablaton.py"], "did you mean configs/v2_ablation.py?"),
    "empty config": (["--config="], "--config is empty"),
    "config that is a folder": (["--config=configs"], "configs is a folder: give a config file"),
    "config that is no Python": (["--config=README.md"], "README.md, line "),
    "nothing after config": (["--config"], "--config needs a file"),
    "unknown preset": (["--config=configs/v2_ablation.py:ful"], "unknown preset 'ful'"),
    "unknown flag": ([CONFIG, "--wrkdir=x"], "'wrkdir'. Did you mean: workdir"),
    "unknown field without a neighbour": (
        [CONFIG, "--config.zzz=1"], "no such field of the config (see docs/fields.md): "
    ),
    "a group of fields": ([CONFIG, "--config.model=3"], "`3` is not a dict"),
    "no whole number": ([CONFIG, "--config.seed=x"], "--config.seed=x: invalid literal"),
    "no runs at a time": ([CONFIG, "--parallel=0"], "--parallel=0: 0 is not a positive integer"),
    "some runs at a time": ([CONFIG, "--parallel=all"], "--parallel=all: invalid literal"),
    "no threads": ([CONFIG, "--threads=0"], "--threads=0: 0 is not a positive integer"),
    "an optimizer that is none": (
        [CONFIG, "--config.optimization.optimizer=adamm"], "did you mean 'adam'?"
    ),
    "several joined runs": (
        [CONFIG, "--parallel=2", "--distributed"], "--parallel is for one machine"
    ),
    "traces of several runs": (
        [CONFIG, "--parallel=2", "--profile=runs/t"], "and runs without --profile"
    ),
    "nothing chosen": ([CONFIG, "--only="], "--only has an empty name"),
    "unknown run": ([CONFIG, "--only=linear/x"], "unknown run 'linear/x'"),
    "unknown field": ([CONFIG, "--config.modle.width=0.5"], 'mean "model" instead'),
    "arms": ([CONFIG, "--config.arms=a"], "of field config.arms is not supported"),
    "wrong type": ([CONFIG, "--config.model.width=wide"], "wide"),
    "unknown data set": ([CONFIG, "--config.data.name=fashion_mist"], "mean 'fashion_mnist'"),
    "unknown model": ([CONFIG, "--config.model.name=mobilenet_v3"], "mean 'mobilenet_v2'"),
    "unknown arm": ([CONFIG, "--only=relu"], "unknown arm 'relu': did you mean 'relu6'"),
    "indivisible batch": ([CONFIG, "--config.batch_size=100"], "of the 8 devices, got 100"),
    "a batch of everything": ([CONFIG, "--config.data.validation=59999"], "than the 1 training "),
    "no seeds": ([CONFIG, "--config.seeds=0"], "seeds must be a whole number, 1 or more, got 0"),
    "no width": ([CONFIG, "--config.model.width=0."], "model: width must be greater than 0"),
    "bad duration": ([CONFIG, "--config.duration=soon"], "duration must be like '2 epochs'"),
    "a duration without a unit": ([CONFIG, "--config.duration=500"], "you mean '500 steps'?"),
    "a field of a group as a flag": (
        [CONFIG, "--learning-rate=1"], "did you mean --config.optimization.learning_rate?"
    ),
    "a folder of pictures that is misspelt": (
        [CONFIG, "--config.data.name=folder:weights/fashion_mnist/picture"],
        "did you mean weights/fashion_mnist/pictures?",
    ),
    "no weights": (["--config=configs/finetune.py"], "no weights given: set config.weights"),
    "wrong weights": (
        ["--config=configs/finetune.py", "--config.weights=README.md"],
        "README.md holds no known format: Keras, PyTorch",
    ),
    "a trace in a bucket": ([CONFIG, "--profile=s3://bucket/t"], "--profile s3://bucket/t is an"),
    "processes without an address": (
        [CONFIG, "--num_processes=2"], "give --coordinator_address, --num_processes, --process_id"
    ),
    "a process too many": (
        [CONFIG, "--process_id=2", "--num_processes=2", "--coordinator_address=a:1"],
        "--process_id must be 0 to 1, got 2",
    ),
    "an address without a port": (
        [CONFIG, "--process_id=1", "--num_processes=2", "--coordinator_address=a"],
        "--coordinator_address must be HOST:PORT, got 'a'",
    ),
    "stray argument": ([CONFIG, "run"], "unexpected argument 'run'"),
    "an argument of a flag that has none": ([CONFIG, "--report", "a"], "unexpected argument 'a'"),
}  # fmt: skip


def assert_one_line(done, message):
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_clear_line(tmp_path, fashion_mnist, name):
    arguments, message = BAD_INPUT[name]
    done = commands.run("mnv2.main", *arguments, f"--workdir={tmp_path}/never")
    assert_one_line(done, message)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("", "--workdir is empty"),
        ("README.md", "--workdir README.md is a file"),
    ],
)
def test_a_workdir_that_can_be_none_is_refused(workdir, message):
    assert_one_line(commands.run("mnv2.main", CONFIG, f"--workdir={workdir}"), message)


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("s3://bucket/runs", "--workdir s3://bucket/runs is an address"),
        ("README.md/runs", "cannot write to --workdir README.md/runs: "),
    ],
)
def test_a_workdir_is_refused_before_anything_is_imported(workdir, message):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "mnv2.main", CONFIG, f"--workdir={workdir}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_one_line(done, message)
    assert not {"jax", "tensorflow"} & {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines()
    }


CONFIGS = {
    "syntax": ("def get_config(:", "line 1: invalid syntax"),
    "raises": ("def get_config():\n    raise KeyError('oops')", "line 2: KeyError: 'oops'"),
    "no import": ("import nothing_like_it", "line 1: ModuleNotFoundError: No module named"),
    "no function": ("x = 1", "has no attribute 'get_config'"),
    "number": ("def get_config():\n    return 3", "must return an ml_collections.ConfigDict"),
    "nothing": ("def get_config():\n    pass", "not a NoneType"),
    "no file": ("def get_config():\n    open('/none')", "line 2: FileNotFoundError: "),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_wrong_in_a_config_file_is_one_line_that_says_where(tmp_path, name):
    content, message = CONFIGS[name]
    (tmp_path / "mine.py").write_text(content)
    config, workdir = f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/never"
    done = commands.run("mnv2.main", config, workdir)
    assert_one_line(done, message)
    assert not (tmp_path / "never").exists()


def test_a_verb_runs_its_command_whose_help_teaches():
    done = subprocess.run(
        [sys.executable, "-m", "mnv2", "train", "--help"], capture_output=True, text=True
    )
    assert "python -m mnv2.main --config configs/v2_ablation.py" in done.stdout
    assert "--workdir: Folder" in done.stdout
    assert done.returncode == 0
