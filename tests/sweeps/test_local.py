import json
import os
import signal
import sys
import threading

import pytest

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import warn_once
from mnv2.runtime.interruption import Stopped
from mnv2.runtime.layout import LOG
from mnv2.sweeps import local
from mnv2.sweeps.local import _shares
from mnv2.sweeps.plan import chosen, plan

# Stands for the command that does a run: it says on what cores, and leaves a result or an error.
COMMAND = """
import json, os, pathlib, signal, sys, time
name = sys.argv[-1].removeprefix("--only=")
folder = pathlib.Path(sys.argv[1]) / name
folder.mkdir(parents=True, exist_ok=True)
print("cores", sorted(os.sched_getaffinity(0)), flush=True)
if sys.argv[3] == "damages":
    (folder / "result.json").write_text('{"test": {"accuracy": NaN}}')
    sys.exit()
if name == sys.argv[2]:
    (folder / "failure.txt").write_text("Traceback\\nValueError: no luck\\n")
    sys.exit(1)
if sys.argv[3] == "waits":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(75)))
    (folder / "begun").touch()
    time.sleep(60)
result = {"test": {"accuracy": 0.5}, "parameters": 1, "multiply_adds": 1, "train_seconds": 1.0,
          "images_per_second": 1.0, "waiting_for_input": 0.0}
(folder / "result.json").write_text(json.dumps(result))
"""


def command(workdir, fails="nothing", then="ends"):
    return [sys.executable, "-c", COMMAND, str(workdir), fails, then]


def test_runs_are_done_in_processes_that_share_the_cores(three_runs, tmp_path, capsys):
    local.run_in_processes(three_runs, tmp_path, (), 2, command(tmp_path))
    printed = capsys.readouterr().out
    assert "3 of 3 runs to do, 2 at a time, " in printed
    assert "[3/3] " in printed
    assert (tmp_path / "report.md").exists()
    cores = {
        tuple(json.loads((tmp_path / arm / "0" / LOG).read_text().removeprefix("cores ")))
        for arm in "abc"
    }
    available = sorted(os.sched_getaffinity(0))
    assert len(cores) == min(2, len(available))
    assert sorted(core for share in cores for core in share) == available
    assert sorted(os.sched_getaffinity(0)) == available


def test_a_run_that_fails_does_not_stop_the_others_and_is_named(three_runs, tmp_path, capsys):
    with pytest.raises(UserError, match="1 of the runs failed: b/0: ValueError: no luck"):
        local.run_in_processes(three_runs, tmp_path, (), 1, command(tmp_path, fails="b/0"))
    assert "b/0                    failed: ValueError: no luck" in capsys.readouterr().out
    assert (tmp_path / "c" / "0" / "result.json").exists()
    with pytest.raises(UserError, match="no luck"):
        local.run_in_processes(three_runs, tmp_path, (), 1, command(tmp_path, fails="b/0"))
    assert "1 of 3 runs to do" in capsys.readouterr().out


def test_a_signal_is_passed_on_to_every_process(three_runs, tmp_path):
    def interrupt():
        while not all((tmp_path / arm / "0" / "begun").exists() for arm in "ab"):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(Stopped, match="SIGTERM"):
        local.run_in_processes(three_runs, tmp_path, (), 2, command(tmp_path, then="waits"))
    thread.join()
    for arm in "ab":
        assert (tmp_path / arm / "0" / "saved").exists()
    assert not (tmp_path / "c").exists()


def test_a_result_that_is_damaged_is_a_failure(three_runs, tmp_path):
    three_runs.arms = three_runs.arms[:1]
    with pytest.raises(UserError, match=r"a/0: .*/a/0/result.json is damaged .*holds NaN"):
        local.run_in_processes(
            three_runs, tmp_path, (), 1, command(tmp_path, then="damages"), reports=False
        )


def test_where_processes_cannot_be_bound_to_cores_they_share_all_of_them(
    three_runs, tmp_path, capsys, monkeypatch
):
    """As on macOS, whose Python has no such functions."""
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    local.run_in_processes(three_runs, tmp_path, (), 2, command(tmp_path), reports=False)
    printed = capsys.readouterr().out
    assert "3 of 3 runs to do, 2 at a time, all cores for each" in printed
    assert "[3/3] " in printed
    assert not (tmp_path / "report.md").exists()


def test_if_binding_is_forbidden_one_warning_says_so(three_runs, tmp_path, capsys, monkeypatch):
    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    warn_once.cache_clear()
    monkeypatch.setattr(os, "sched_setaffinity", forbidden)
    local.run_in_processes(three_runs, tmp_path, (), 2, command(tmp_path), reports=False)
    said = capsys.readouterr().err
    assert said == "warning: processes are not bound to cores: Operation not permitted\n"


def test_processes_have_the_options_of_this_python(monkeypatch):
    monkeypatch.setattr(sys, "warnoptions", ["error::SyntaxWarning"])
    words = local.this_command(["--x"])
    assert words[0] == sys.executable
    assert words[-5:] == ["-m", "mnv2.main", "--x", "--launcher=none", "--noreport"]
    assert "-Werror::SyntaxWarning" in words


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert [share.gpus for share in _shares(2)] == [("0", "2"), ("1", "3")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert [share.gpus for share in _shares(2)] == [("5",), ("5",)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [share.gpus for share in _shares(2)] == [None, None]


def test_single_runs_can_be_chosen(three_runs, tmp_path):
    runs = plan(three_runs, tmp_path)
    assert [one.name for one in chosen(runs, ["b", "c/0"])] == ["b/0", "c/0"]
    with pytest.raises(UserError, match="unknown run 'c/1': did you mean 'c/0'"):
        chosen(runs, ["c/1"])
