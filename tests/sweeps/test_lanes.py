import json
import os
import signal
import threading
import time

import jax
import numpy as np
import pytest

from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.sweeps import execute
from mnv2.sweeps.display import Display
from mnv2.sweeps.execute import run_sweep
from mnv2.sweeps.lanes import Lanes
from mnv2.sweeps.plan import plan
from mnv2.training import loop
from mnv2.training.progress import Progress
from tests.faults.kills import final_state as state

DIVIDED, TOGETHER = Lanes(devices=4), Lanes(together=3)


@pytest.fixture
def config(three_runs, few_test_pictures):
    """One arm with two seeds: a program is compiled once for all of these tests."""
    three_runs.seeds = 2
    three_runs.arms = (("a", {}),)
    return three_runs


def test_a_run_on_devices_of_its_own_is_what_it_is_there_alone(config, tmp_path, capsys):
    run_sweep(config, tmp_path / "lanes", lanes=DIVIDED)
    printed = capsys.readouterr().out
    assert "2 runs at the same time, 4 devices each" in printed
    assert "[2/2]" in printed
    for one in plan(config, tmp_path / "lanes"):
        alone = loop.train(
            one.settings, tmp_path / "alone" / one.name, devices=DIVIDED.of_devices()[0]
        )
        theirs = json.loads((one.folder / "result.json").read_text())
        assert theirs["test"] == alone["test"]
        jax.tree.map(
            np.testing.assert_array_equal,
            state(tmp_path / "lanes", one.name),
            state(tmp_path / "alone", one.name),
        )
        environment = json.loads((one.folder / "environment.json").read_text())
        assert environment["devices"] == ["cpu"] * 4
    assert (tmp_path / "lanes" / "report.md").exists()


@pytest.fixture
def float64(config):
    """The config in float64: the first steps of a fresh network multiply float32's rounding."""
    jax.config.update("jax_enable_x64", True)  # also in other threads
    config.model.dtype = "float64"
    yield config
    jax.config.update("jax_enable_x64", False)


def test_runs_of_one_program_are_what_they_are_alone(float64, tmp_path, capsys):
    float64.arms = (("a", {}), ("b", {"optimization.learning_rate": 0.05, "seeds": 1}))
    float64.model.dropout = 0.3
    float64.ema_decay = 0.9
    float64.data.augmentation = "crop_flip"
    run_sweep(float64, tmp_path / "together", lanes=TOGETHER, reports=False)
    assert "up to 3 runs in one program" in capsys.readouterr().out
    run_sweep(float64, tmp_path / "alone", reports=False)
    for one in plan(float64, tmp_path / "together"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9),
            state(tmp_path / "together", one.name),
            state(tmp_path / "alone", one.name),
        )
        environment = json.loads((one.folder / "environment.json").read_text())
        assert environment["together"] == 3


def test_a_run_that_fails_does_not_stop_those_in_the_same_program(config, tmp_path):
    config.arms = (("a", {}), ("b", {"optimization.learning_rate": 1e30}))
    config.seeds = 1
    with pytest.raises(UserError, match=r"1 of the runs failed: b/0: the loss or its gradient"):
        run_sweep(config, tmp_path, lanes=TOGETHER, reports=False)
    assert [one.name for one in plan(config, tmp_path) if one.finished] == ["a/0"]


@pytest.mark.parametrize("lanes", [DIVIDED, TOGETHER])
def test_after_a_signal_all_runs_are_saved_and_resumed_to_the_same_end(
    config, lanes, tmp_path, monkeypatch
):
    config.checkpoint_every = "0 steps"
    run_sweep(config, tmp_path / "undisturbed", lanes=lanes, reports=False)
    stopper, at_step_two = Stopper(), threading.Barrier(2)

    def now(self, worker, now):
        if isinstance(now, Progress) and now.step == 2:
            if at_step_two.wait(timeout=60) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            while not stopper.noted:  # by the main thread, which may get no core for a while
                time.sleep(0.01)

    with monkeypatch.context() as patched:
        patched.setattr(Display, "now", now)
        patched.setattr(execute, "Stopper", lambda any_of: stopper)
        with pytest.raises(Stopped, match=r"^SIGTERM; step . of ./. is saved in .*; step ") as end:
            run_sweep(config, tmp_path / "stopped", lanes=lanes, reports=False)
    assert str(end.value).count("is saved") == 2
    runs = plan(config, tmp_path / "stopped")
    assert not any(one.finished for one in runs)
    run_sweep(config, tmp_path / "stopped", lanes=lanes, reports=False)
    for one in runs:
        jax.tree.map(
            np.testing.assert_array_equal,
            state(tmp_path / "undisturbed", one.name),
            state(tmp_path / "stopped", one.name),
        )
        steps = [json.loads(line)["step"] for line in (one.folder / "metrics.jsonl").open()]
        assert steps == sorted(steps)


def test_devices_that_cannot_be_divided_are_an_error():
    with pytest.raises(UserError, match=r"--devices_per_run must divide .* devices, 8, got 3"):
        Lanes(devices=3).of_devices()


def test_runs_with_equal_programs_are_divided_evenly(config, tmp_path):
    config.seeds = 5
    config.arms = (
        ("a", {}),
        ("b", {"optimization.learning_rate": 0.05}),
        ("c", {"model.bottleneck": "relu6"}),
    )
    groups = Lanes(together=4).groups(plan(config, tmp_path))
    assert [[one.arm for one in group] for group in groups] == [
        ["a", "b", "a", "b"],
        ["a", "b", "a", "b"],
        ["a", "b"],
        ["c"] * 3,
        ["c"] * 2,
    ]
