import contextlib
import os
import signal
import subprocess
import sys

import pytest

from mnv2.runtime import cli
from mnv2.runtime.interruption import Stopped, Stopper


@pytest.fixture
def stopper():
    stopper = Stopper()
    with stopper.listening():
        yield stopper


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_once_where_nothing_is_to_be_saved(stopper, number):
    with pytest.raises(Stopped, match=signal.Signals(number).name):
        send(number)


def test_within_a_loop_a_signal_waits_until_it_is_asked_for(stopper):
    with contextlib.suppress(Stopped), stopper.deferred():
        stopper.check()  # nothing has come yet
        send(signal.SIGTERM)
        with pytest.raises(Stopped, match="SIGTERM"):
            stopper.check()


def test_a_signal_of_the_last_step_is_not_lost(stopper):
    with pytest.raises(Stopped), stopper.deferred():
        send(signal.SIGTERM)


def test_a_second_interrupt_does_not_wait(stopper):
    with contextlib.suppress(Stopped), stopper.deferred():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


COMPILES = """
import os, signal, sys
from mnv2.runtime.interruption import Stopper
stopper = Stopper()
with stopper.listening(), stopper.deferred():
    with stopper.may_die():
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
        print("not reached", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_during_a_compilation_ends_the_process_at_once(name):
    done = subprocess.run(
        [sys.executable, "-c", COMPILES, name], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.Signals[name]
    assert done.stdout == ""


def test_a_signal_before_a_compilation_stops_it_and_others_wait_as_before(stopper):
    with contextlib.suppress(Stopped), stopper.deferred():
        with stopper.may_die():
            pass
        send(signal.SIGTERM)  # only noted again
        with pytest.raises(Stopped, match="SIGTERM"), stopper.may_die():
            raise AssertionError


def test_several_processes_talk_less_often_where_steps_are_short(monkeypatch):
    now, talks = [0.0], []
    monkeypatch.setattr("mnv2.runtime.interruption.time.monotonic", lambda: now[0])
    stopper = Stopper(lambda value: talks.append(now[0]) or value)
    for seconds, checks in ((3, 3), (0.1, 21), (3, 11)):
        for _ in range(checks):
            now[0] += seconds
            stopper.check()
    # Each talk asks twice. Short steps are noticed after one, long ones after ten at most.
    of_slow, of_fast, slow_again = [3, 6, 9], [9.1, 10.1, 11.1], [14.1 + 3 * 9]
    assert talks[::2] == pytest.approx([*of_slow, *of_fast, *slow_again, 44.1])


def test_afterwards_signals_are_what_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with Stopper().listening():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_stopped_is_not_taken_for_an_error():
    assert not issubclass(Stopped, Exception)


@pytest.mark.parametrize("resumes", [True, False])
def test_only_a_command_that_resumes_says_so_when_it_is_interrupted(resumes, capsys):
    with pytest.raises(SystemExit) as ended, cli.one_line_errors(resumes=resumes):
        raise KeyboardInterrupt
    assert ended.value.code == cli.INTERRUPTED
    assert ("resumes where it stopped" in capsys.readouterr().err) == resumes
