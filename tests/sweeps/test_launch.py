import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def command(workdir, then="", name="all", copies=2):
    program = str(Path(__file__).with_name("fake_sweep.py"))  # `tests` itself is slow to import
    return [sys.executable, program, str(workdir), str(copies), then, name]


def execute(*arguments, **options):
    words = command(*arguments, **options)
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def attempts(workdir, arm):
    """Returns (process, threads) of each attempt at a run."""
    lines = (workdir / arm / "0" / "attempts").read_text().splitlines()
    return [tuple(line.split()) for line in lines]


def test_copies_of_the_command_execute_runs_with_environments_of_their_own(tmp_path):
    done = execute(tmp_path, "takes long", "c/0")
    assert done.returncode == 0, done.stderr
    assert "c/0                     test 50.00 %" in done.stdout
    assert "[3/3] " in done.stdout
    every = {attempt for arm in "abc" for attempt in attempts(tmp_path, arm)}
    assert {threads for _, threads in every} == {"None", "2"}  # the first copy sets its own
    assert len(every) == 2
    again = execute(tmp_path)
    assert again.returncode == 0
    assert again.stdout == ""
    assert [len(attempts(tmp_path, arm)) for arm in "abc"] == [1, 1, 1]


def test_an_error_of_the_first_copy_is_said_once_and_no_other_copy_starts(tmp_path):
    done = execute(tmp_path, "refuses")
    assert done.returncode == 2
    assert done.stderr == "error: no such data\n"
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_does_not_stop_the_others_and_is_named(tmp_path):
    done = execute(tmp_path, "fails", "b/0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 of the runs failed: b/0; why is said above, and with ")
    assert done.stderr.endswith(f"{tmp_path}/b/0/failure.txt\n")
    assert "b/0                     failed: ValueError: no luck" in done.stdout
    assert (tmp_path / "a/0/result.json").exists()
    assert len(attempts(tmp_path, "b")) == 1


def test_a_copy_that_dies_is_started_once_more_and_its_run_is_resumed(tmp_path):
    done = execute(tmp_path, "dies once", "c/0")
    assert done.returncode == 0, done.stderr
    assert len({process for process, _ in attempts(tmp_path, "c")}) == 2
    assert "the process of c/0 ended with exit code 1; the run is resumed" in done.stdout


def test_a_copy_that_the_system_kills_lowers_the_number_of_runs_at_the_same_time(tmp_path):
    done = execute(tmp_path, "is killed once", "c/0")
    assert done.returncode == 0, done.stderr
    assert "out of luck" in done.stdout  # what it said before
    assert "was killed (SIGKILL, perhaps for lack of memory); the run is resumed" in done.stdout
    assert "1 at the same time from now on, for lack of memory" in done.stdout
    assert (tmp_path / "c/0/result.json").exists()


def test_a_run_that_ends_two_copies_has_failed(tmp_path):
    done = execute(tmp_path, "is killed", "c/0")
    assert done.returncode == 2
    assert "1 of the runs failed: c/0; why is said above" in done.stderr
    assert "for the second time" in (tmp_path / "c/0/failure.txt").read_text()
    assert len(attempts(tmp_path, "c")) in (2, 3)  # another copy may take it meanwhile
    assert (tmp_path / "a/0/result.json").exists()
    assert (tmp_path / "b/0/result.json").exists()


def test_if_every_run_ends_its_process_all_are_named(tmp_path):
    done = execute(tmp_path, "dies", copies=1)
    assert done.returncode == 2
    assert "all processes died" in done.stderr or "of the runs failed" in done.stderr


def test_a_run_that_another_command_executes_is_left_to_it(tmp_path):
    other = start(tmp_path, "waits", "c/0", copies=1)
    try:
        wait_for(tmp_path / "c/0/begun")
        done = execute(tmp_path)
        assert done.returncode == 0, done.stderr
        assert "c/0 is being done by process" in done.stdout
        assert len(attempts(tmp_path, "c")) == 1
    finally:
        other.send_signal(signal.SIGTERM)
        assert other.wait(20) == 75


def start(*arguments, **options):
    return subprocess.Popen(
        command(*arguments, **options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_every_copy(tmp_path, number):
    process = start(tmp_path, "waits")
    for arm in "cb":
        wait_for(tmp_path / arm / "0" / "begun")
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 75
    assert f"stopped by {signal.Signals(number).name}: the same command resumes there" in said
    for arm in "cb":
        assert (tmp_path / arm / "0" / "saved").exists()
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("ways", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)])
def test_copies_that_do_not_answer_a_signal_are_killed(tmp_path, ways):
    process = start(tmp_path, "ignores")
    for arm in "cb":
        wait_for(tmp_path / arm / "0" / "begun")
    for number in ways:
        process.send_signal(number)
        time.sleep(0.5)
    process.communicate(timeout=30)
    assert process.returncode in (75, 130)
    for arm in "cb":
        with pytest.raises(ProcessLookupError):
            os.kill(int(attempts(tmp_path, arm)[0][0]), 0)


def test_the_sweeps_of_a_command_have_copies_of_their_own(tmp_path):
    done = execute(tmp_path, "tunes", copies=1)
    assert done.returncode == 0, done.stderr
    of_sweeps = [
        {attempt for arm in "abc" for attempt in attempts(folder, arm)}
        for folder in (tmp_path / "tuning", tmp_path)
    ]
    assert [len(found) for found in of_sweeps] == [1, 1]
    assert not of_sweeps[0] & of_sweeps[1]


def test_what_several_copies_print_is_shown_once(tmp_path):
    done = execute(tmp_path, "prints")
    assert done.stderr.count("warning: the same for all") == 1
    assert json.loads((tmp_path / "a/0/result.json").read_text())["test"]["accuracy"] == 0.5
