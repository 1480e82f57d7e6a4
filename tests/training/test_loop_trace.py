import jax
import pytest

from mnv2.training.loop import Trace


@pytest.fixture
def calls(monkeypatch):
    found = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append(folder))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def test_some_steps_after_the_first_are_traced_once(tmp_path, calls, capsys):
    trace = Trace(tmp_path)
    at = {}
    for step in range(1, 40):
        trace.after_step(0)
        at[len(calls)] = at.get(len(calls), step)
    trace.close()
    assert calls == [str(tmp_path), "stop"]
    assert at == {0: 1, 1: Trace.FIRST - 1, 2: Trace.FIRST - 1 + Trace.STEPS}
    assert capsys.readouterr().out == f"trace of {Trace.STEPS} steps: xprof --logdir {tmp_path}\n"


def test_a_short_run_is_traced_to_its_end(tmp_path, calls, capsys):
    trace = Trace(tmp_path)
    for _ in range(4):
        trace.after_step(0)
    trace.close()
    assert calls == [str(tmp_path), "stop"]
    assert "trace of 2 steps" in capsys.readouterr().out


def test_without_a_folder_nothing_is_traced(calls):
    trace = Trace(None)
    for _ in range(20):
        trace.after_step(0)
    trace.close()
    assert calls == []
