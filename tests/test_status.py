import json
import os
import subprocess
import sys

import pytest

from configs import v2_ablation
from mnv2 import status
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import append_line, sole_writer, write_json, write_text
from mnv2.status import statuses
from mnv2.sweeps.plan import with_arms

ARMS = (("linear", {}), ("relu6", {"model.bottleneck": "relu6"}), ("t_1", {"model.expansion": 1.0}))


@pytest.fixture
def workdir(tmp_path):
    """One run done, one stopped, one failed, the second seeds waiting."""
    config = with_arms(v2_ablation.get_config("quick"))
    config.arms, config.seeds = ARMS, 2
    steps = {arm: 30 for arm, _ in ARMS}
    write_json(tmp_path / "sweep.json", {"config": config.to_dict(), "steps": steps})
    result = {"test": {"accuracy": 0.8512}, "parameters": 1, "multiply_adds": 1,
              "images_per_second": 1.0, "train_seconds": 1.0}  # fmt: skip
    write_json(tmp_path / "linear/0/result.json", result)
    (tmp_path / "relu6/0").mkdir(parents=True)
    for line in (
        {"step": 10, "train/loss": 1.0, "train/images_per_second": 64.0},
        {"step": 10, "validation/loss": 1.0},
    ):
        append_line(tmp_path / "relu6/0/metrics.jsonl", json.dumps(line))
    with (tmp_path / "relu6/0/metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "tra')  # cut short
    write_text(tmp_path / "t_1/0/failure.txt", "Traceback ...\nOSError: disk full\n")
    return tmp_path


def test_every_run_is_told_of(workdir):
    found = {row.name: (row.state, row.detail) for row in statuses(workdir)}
    assert found == {
        "linear/0": ("done", "85.12 %"),
        "linear/1": ("waiting", ""),
        "relu6/0": ("stopped", "step 10 of 30"),
        "relu6/1": ("waiting", ""),
        "t_1/0": ("failed", "OSError: disk full"),
        "t_1/1": ("waiting", ""),
    }


def test_a_run_in_a_process_is_running_and_says_how_long_still(workdir, capsys):
    with sole_writer(workdir / "relu6/0"):
        status.show(workdir)
    printed = capsys.readouterr().out
    # 20 steps of 128 images at 64 a second.
    assert "relu6/0   running  step 10 of 30, 64 images/s, 40 s left (process " in printed
    counts, traceback = printed.splitlines()[-2:]
    assert counts == "1 done, 1 running, 1 failed, 3 waiting"
    assert traceback == f"why, with any traceback: {workdir}/t_1/0/failure.txt"


def test_a_run_that_was_saved_before_its_first_line_is_stopped(workdir):
    for run, step in (("relu6/1", 7), ("relu6/0", 15)):
        (workdir / run / "checkpoints" / str(step)).mkdir(parents=True)
        (workdir / run / "checkpoints" / f"{step + 9}.orbax-checkpoint-tmp").mkdir()
    found = {row.name: (row.state, row.detail) for row in statuses(workdir)}
    assert found["relu6/1"] == ("stopped", "step 7 of 30")
    assert found["relu6/0"] == ("stopped", "step 15 of 30")  # and not 10, as its last line has


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("first/linear/0", "first"),
        ("first/linear", "first"),
        (".", "first"),
        ("frist", "first"),
        ("first/linaer", "first/linear"),
        ("nothing/like/it", None),
    ],
)
def test_a_folder_that_is_no_workdir_is_refused_with_the_one_that_is_near(
    workdir, tmp_path_factory, given, near
):
    folder = tmp_path_factory.mktemp("runs")
    workdir.rename(folder / "first")
    hint = f"did you mean {folder / near}?" if near else "there is no such folder"
    with pytest.raises(UserError, match="is not the --workdir of any runs") as error:
        status.show(folder / given)
    assert str(error.value).endswith(f": {hint}")


@pytest.mark.parametrize(
    ("name", "content", "row", "detail"),
    [
        (
            "linear/0/result.json",
            "",
            "linear/0",
            "linear/0/result.json is damaged (Expecting value",
        ),
        ("linear/0/result.json", "NaN", "linear/0", "(it holds NaN): delete it, and repeat"),
        ("relu6/0/metrics.jsonl", "[1]\n", "relu6/0", "line 1 of "),
        ("relu6/0/metrics.jsonl", '{"step": "x", "train/loss": 1}\n', "relu6/0", "line 1 of "),
        ("relu6/0/metrics.jsonl", '\n{"step": 1}\n', "relu6/0", "line 1 of "),
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_the_others_are_shown(
    workdir, capsys, name, content, row, detail
):
    (workdir / name).write_text(content)
    found = {one.name: one for one in statuses(workdir)}
    assert len(found) == 6
    assert found[row].state == "damaged"
    assert detail in found[row].detail
    status.show(workdir)
    assert "1 damaged" in capsys.readouterr().out


def test_what_else_lies_beside_the_seeds_is_not_shown(workdir):
    for name in ("old", "0.bak", ".ipynb_checkpoints"):
        (workdir / "linear" / name).mkdir()
    assert len(statuses(workdir)) == 6


def test_an_empty_failure_is_still_a_failure(workdir):
    (workdir / "t_1/0/failure.txt").write_text("")
    found = {one.name: one for one in statuses(workdir)}
    assert found["t_1/0"].state == "failed"


@pytest.mark.parametrize(
    ("command", "given", "message"),
    [
        ("status", "hdfs://bucket/runs", "is an address"),
        ("report", "", "WORKDIR is empty"),
    ],
)
def test_what_can_be_no_workdir_is_one_line(command, given, message):
    done = subprocess.run(
        [sys.executable, "-m", f"mnv2.{command}", given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_where_nothing_can_be_cached_a_command_works_and_one_warning_says_so(workdir):
    done = subprocess.run(
        [sys.executable, "-m", "mnv2.status", str(workdir)],
        env={**os.environ, "XDG_CACHE_HOME": str(workdir / "sweep.json")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "linear/0  done" in done.stdout
    assert done.stderr.startswith("warning: nothing is cached, because cannot write to ")
    assert done.stderr.count("\n") == 1


def test_the_reader_of_a_pipe_may_leave_and_a_terminal_may_lack_a_sign():
    command = """if True:
        import sys
        from mnv2.runtime.cli import run
        run(lambda: print("\\u00b1", *range(100_000)))
    """
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with subprocess.Popen(
        [sys.executable, "-c", command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.read(3) == "? 0"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 141
