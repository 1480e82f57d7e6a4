"""The command line: bad input ends in one line, exit code 2, and nothing written."""

import os
import subprocess
import sys

import pytest

CONFIG = "--config=configs/v2_ablation.py:quick"

BAD_INPUT = {
    "no config": ([], "no --config given"),
    "missing config": (["--config=configs/v3.py"], "no config file configs/v3.py"),
    "unknown preset": (["--config=configs/v2_ablation.py:ful"], "unknown preset 'ful'"),
    "unknown flag": ([CONFIG, "--wrkdir=x"], "wrkdir"),
    "unknown field": ([CONFIG, "--config.modle.width=0.5"], "'modle': did you mean 'model'?"),
    "unknown nested field": ([CONFIG, "--config.model.wdith=1."], "'wdith': did you mean 'width'?"),
    "odd arms": ([CONFIG, "--config.arms=a"], "arms must be pairs of a name and its changes"),
    "wrong type": ([CONFIG, "--config.model.width=wide"], "wide"),
    "unknown data set": ([CONFIG, "--config.data.name=fashion_mist"], "mean 'fashion_mnist'"),
    "unknown model": ([CONFIG, "--config.model.name=mobilenet_v3"], "mean 'mobilenet_v2'"),
    "unknown arm": ([CONFIG, "--only=relu"], "unknown arm 'relu': did you mean 'relu6'"),
    "indivisible batch": ([CONFIG, "--config.batch_size=100"], "of the 8 devices, got 100"),
    "no width": ([CONFIG, "--config.model.width=0."], "width must be greater than 0, got 0.0"),
    "bad duration": ([CONFIG, "--config.duration=soon"], "duration must be like '2 epochs'"),
    "no weights": (["--config=configs/finetune.py"], "no weights given: set config.weights"),
    "wrong weights": (
        ["--config=configs/finetune.py", "--config.weights=README.md"],
        "unknown format '.md' of README.md: the known suffixes are .h5",
    ),
    "unknown launcher": ([CONFIG, "--launcher=slrm"], "launcher"),
    "a launcher and processes": (
        [CONFIG, "--launcher=local", "--distributed"], "leave out --distributed"
    ),
    "processes without an address": (
        [CONFIG, "--num_processes=2"], "give --coordinator_address, --num_processes, --process_id"
    ),
    "stray argument": ([CONFIG, "run"], "unexpected argument 'run'"),
}  # fmt: skip


def main(*arguments):
    """Runs the command as a user would; without the restart for huge pages, which costs time."""
    return subprocess.run(
        [sys.executable, "-m", "mnv2.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "GLIBC_TUNABLES": ""},
    )


def assert_one_line(done, message):
    assert done.returncode == 2, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_one_clear_line(tmp_path, fashion_mnist, name):
    arguments, message = BAD_INPUT[name]
    assert_one_line(main(*arguments, f"--workdir={tmp_path}/never"), message)
    assert not (tmp_path / "never").exists()


def test_a_workdir_that_cannot_be_written_is_one_clear_line(tmp_path, fashion_mnist):
    (tmp_path / "file").write_text("")
    done = main(CONFIG, f"--workdir={tmp_path}/file/runs")
    assert_one_line(done, f"cannot write to --workdir {tmp_path}/file/runs: Not a directory")


def test_help_teaches():
    done = main("--help")
    assert "python -m mnv2.main --config configs/v2_ablation.py" in done.stdout
    assert "--workdir" in done.stdout
