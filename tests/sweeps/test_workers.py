import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from mnv2.runtime import machine
from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import Stopped
from mnv2.sweeps import workers
from mnv2.sweeps.division import Division
from mnv2.sweeps.workers import run_in_workers

FAKE = str(Path(__file__).with_name("fake_worker.py"))


@pytest.fixture(autouse=True)
def no_networks(monkeypatch):
    """Gives run c/0 the most multiply-adds, then b/0, without building networks."""
    monkeypatch.setattr(
        workers, "multiply_adds", lambda runs, check: {one.name: ord(one.arm) for one in runs}
    )


def execute(config, workdir, then="ends", name="all", count=2, only=(), **options):
    """Executes the runs in workers that only pretend to train."""
    division = Division(count, threads=1, reason="1 thread each", chosen=True)._replace(**options)
    command = [sys.executable, FAKE, then, name]
    run_in_workers(config, workdir, only, division, command=command)


def attempts(workdir, arm):
    """Returns (process, threads) of each attempt at a run."""
    lines = (workdir / arm / "0" / "attempts").read_text().splitlines()
    return [tuple(line.split()) for line in lines]


def test_each_worker_executes_run_after_run_the_longest_first(three_runs, tmp_path, capsys):
    execute(three_runs, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("2 workers, 1 thread each\n")
    assert "c/0                     test 50.00 %" in printed
    assert "[3/3] " in printed
    first = [attempts(tmp_path, arm)[0][0] for arm in "cba"]
    assert first[0] != first[1]
    assert first[2] in first[:2]
    assert {threads for arm in "abc" for _, threads in attempts(tmp_path, arm)} == {"1"}
    assert (tmp_path / "report.md").exists()
    execute(three_runs, tmp_path)
    assert f"3 of 3 runs in {tmp_path} are finished already\n" in capsys.readouterr().out


def test_a_run_that_fails_does_not_stop_the_others_and_is_named(three_runs, tmp_path, capsys):
    with pytest.raises(UserError, match="1 of the runs failed: b/0: ValueError: no luck"):
        execute(three_runs, tmp_path, "fails", "b/0")
    assert "b/0                     failed: ValueError: no luck" in capsys.readouterr().out
    assert (tmp_path / "a/0/result.json").exists()
    execute(three_runs, tmp_path)
    assert "2 of 3 runs" in capsys.readouterr().out


def test_a_worker_that_dies_is_replaced_and_its_run_is_resumed(three_runs, tmp_path, capsys):
    execute(three_runs, tmp_path, "dies once", "c/0")
    processes = [process for process, _ in attempts(tmp_path, "c")]
    assert len(set(processes)) == 2
    printed = capsys.readouterr().out
    assert (
        "the worker of c/0 was killed (SIGKILL, perhaps for lack of memory); the run is resum"
        in (printed)
    )
    assert "out of luck" in printed  # what the worker said before
    assert "[3/3]" in printed


def test_a_run_that_kills_two_workers_has_failed(three_runs, tmp_path):
    with pytest.raises(
        UserError, match=r"1 of the runs failed: c/0: its worker was killed .* seco"
    ):
        execute(three_runs, tmp_path, "dies", "c/0")
    assert len(attempts(tmp_path, "c")) == 2
    assert "second time" in (tmp_path / "c/0/failure.txt").read_text()
    assert (tmp_path / "a/0/result.json").exists()
    assert (tmp_path / "b/0/result.json").exists()


def test_if_all_workers_die_it_says_so_and_ends(three_runs, tmp_path):
    with pytest.raises(UserError, match="all workers died: see the lines above; the same command"):
        execute(three_runs, tmp_path, "dies", count=1)
    assert [len(attempts(tmp_path, arm)) for arm in "c"] == [2]
    assert not (tmp_path / "a").exists()


def test_a_run_that_another_process_executes_is_tried_once_more(
    three_runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(workers, "LATER", 0.3)
    execute(three_runs, tmp_path, "held once", "c/0")
    assert len(attempts(tmp_path, "c")) == 2
    assert "c/0                     test 50.00 %" in capsys.readouterr().out


def test_a_run_that_another_process_goes_on_to_execute_is_left_to_it(
    three_runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(workers, "LATER", 0.3)
    execute(three_runs, tmp_path, "held", "c/0")
    assert len(attempts(tmp_path, "c")) == 2
    assert "[3/3] c/0                     is being done by process 7\n" in capsys.readouterr().out


def signal_when_begun(tmp_path, arms, number):
    def wait():
        while not all((tmp_path / arm / "0" / "begun").exists() for arm in arms):
            pass
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_to_every_worker(three_runs, tmp_path, number):
    thread = signal_when_begun(tmp_path, "cb", number)
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        execute(three_runs, tmp_path, "waits")
    thread.join()
    for arm in "cb":
        assert (tmp_path / arm / "0" / "saved").exists()
    assert not (tmp_path / "a").exists()


def test_ctrl_c_twice_leaves_no_worker_behind(three_runs, tmp_path):
    thread = signal_when_begun(tmp_path, "cb", signal.SIGINT)
    again = threading.Timer(3.0, os.kill, (os.getpid(), signal.SIGINT))
    again.start()
    with pytest.raises(KeyboardInterrupt):
        execute(three_runs, tmp_path, "ignores")
    thread.join()
    for arm in "cb":
        process = int(attempts(tmp_path, arm)[0][0])
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_what_several_workers_print_is_shown_once(three_runs, tmp_path, capsys):
    execute(three_runs, tmp_path, "prints")
    assert capsys.readouterr().out.count("warning: the same for all") == 1


def test_as_many_workers_work_as_have_room(three_runs, tmp_path, capsys, monkeypatch):
    gibibytes = iter([2.0, *[0.5] * 9])  # the worker that trains, then one that has just started
    monkeypatch.setattr(machine, "memory_of", lambda _: next(gibibytes) * 2**30)
    monkeypatch.setattr(machine, "free_memory", lambda: 1.9 * 2**30)
    execute(three_runs, tmp_path, chosen=False)
    assert "memory has room for 1 of 2 workers: one takes 2.5 GiB; --parallel 2 starts all" in (
        capsys.readouterr().out
    )
    assert len({attempts(tmp_path, arm)[0][0] for arm in "abc"}) == 1


def test_with_plenty_of_memory_nobody_waits_for_the_first_worker(three_runs, tmp_path, monkeypatch):
    def measured(_):
        raise AssertionError

    monkeypatch.setattr(machine, "memory_of", measured)
    monkeypatch.setattr(machine, "free_memory", lambda: 4.1 * 2**30)
    execute(three_runs, tmp_path, chosen=False)
    assert len({attempts(tmp_path, arm)[0][0] for arm in "abc"}) == 2


def test_all_workers_work_if_there_is_room(three_runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "memory_of", lambda _: 2**30)
    monkeypatch.setattr(machine, "free_memory", lambda: 2**31)
    execute(three_runs, tmp_path, chosen=False)
    assert "room" not in capsys.readouterr().out
    assert len({attempts(tmp_path, arm)[0][0] for arm in "abc"}) == 2
