"""Whole runs: resumed, stopped, failed."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.layout import METRICS, RESULT
from mnv2.training import log, loop, setup
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.config import from_config
from tests.conftest import leave_test_pictures
from tests.training.test_step import steps_and_state


def train(config, folder, **arguments):
    return loop.train(from_config(config), folder, **arguments)


@pytest.fixture
def one_program(tiny_config):
    """The config of several tests, so that its steps are compiled once for all of them.

    Its learning rate does not depend on the duration.
    """
    tiny_config.data.train = "pad_crop|flip"
    tiny_config.model.dropout = 0.3
    tiny_config.ema_decay = 0.9
    tiny_config.optimization.schedule = "constant"
    return tiny_config


def curves(folder, name):
    """Returns the values of `name` in the log of a run, by step."""
    lines = map(json.loads, (folder / METRICS).read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def test_the_update_norm_is_that_of_the_last_step_however_often_it_is_reported(
    tiny_config, tmp_path, few_test_pictures
):
    tiny_config.duration, tiny_config.eval_every = "6 steps", "0 steps"
    tiny_config.optimization.update(optimizer="sgd", weight_decay=0.0)
    train(tiny_config, tmp_path / "each")
    tiny_config.log_every = 3
    train(tiny_config, tmp_path / "third")
    each = curves(tmp_path / "each", "train/update_norm")
    rates = curves(tmp_path / "each", "train/learning_rate")
    gradients = curves(tmp_path / "each", "train/gradient_norm")
    expected = {step: rates[step] * norm for step, norm in gradients.items()}
    assert each == pytest.approx(expected, rel=1e-4)
    assert curves(tmp_path / "third", "train/update_norm") == {step: each[step] for step in (3, 6)}
    assert not curves(tmp_path / "third", "validation/loss")  # every 0 steps is never


class Killed(Exception):
    pass


def check_resumed(config, tmp_path, monkeypatch):
    """Kills a run at step 5 of 7, resumes it, and compares all with a run that was not killed."""
    config.duration = "7 steps"
    config.checkpoint_every = "3 steps"
    whole = train(config, tmp_path / "whole")

    append_line = log.append_line

    def killing(path, line):
        append_line(path, line)
        if json.loads(line)["step"] == 5:
            raise Killed

    monkeypatch.setattr(log, "append_line", killing)
    with pytest.raises(Killed):
        train(config, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / RESULT).exists()
    monkeypatch.setattr(log, "append_line", append_line)
    resumed = train(config, tmp_path / "stopped")

    assert resumed["test"] == whole["test"]
    _, template = steps_and_state(config)
    states = [
        Checkpoints(tmp_path / name / "checkpoints").restore(template)[0]
        for name in ("whole", "stopped")
    ]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, states))
    assert int(states[0].step) == 7

    def curve(name):
        lines = map(json.loads, (tmp_path / name / METRICS).read_text().splitlines())
        measured = ("time", "train/images_per_second", "train/waiting_for_input")
        return [{k: v for k, v in line.items() if k not in measured} for line in lines]

    assert curve("stopped") == curve("whole")


def test_a_checkpoint_on_its_way_arrives_although_the_run_fails(
    one_program, tmp_path, monkeypatch, few_test_pictures
):
    def failing(*_, **__):
        raise UserError("broken picture")

    # The last checkpoint is saved before the evaluation that fails.
    one_program.checkpoint_every = "2 steps"
    monkeypatch.setattr(loop, "evaluate", failing)
    with pytest.raises(UserError, match="broken picture"):
        train(one_program, tmp_path)
    _, template = steps_and_state(one_program)
    state, _ = Checkpoints(tmp_path / "checkpoints").restore(template)
    assert int(state.step) == 4


def test_a_short_run_learns_and_leaves_its_result(tiny_config, tmp_path, monkeypatch):
    leave_test_pictures(monkeypatch, 500)
    tiny_config.duration = "80 steps"
    tiny_config.log_every = 20
    tiny_config.ema_decay = 0.9999
    result = train(tiny_config, tmp_path)
    # With averages of so long a memory, too: their decay grows from 0.1.
    assert result["test"]["accuracy"] > 0.4
    assert result["test"]["examples"] == 500
    assert result["steps"] == 80
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert list(tmp_path.glob("events.out.tfevents.*"))


def overflowing(config):
    """Makes the first update overflow: the loss of the second step is not finite."""
    config.optimization.learning_rate = 3e38
    config.optimization.weight_decay = 1e3  # the gradients of so small a network are small
    config.optimization.warmup = "0 steps"
    config.optimization.schedule = "constant"


def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(
    tiny_config, tmp_path, few_test_pictures
):
    overflowing(tiny_config)
    message = r"gradient is not finite at step 2 \(learning rate .*: lower .*; there is no check"
    with pytest.raises(UserError, match=message):
        train(tiny_config, tmp_path)


@pytest.mark.parametrize(("before", "after"), [(4, 1), (1, 8)])
def test_a_run_goes_on_with_another_number_of_devices(tiny_config, tmp_path, before, after):
    """What steps compute does not depend on their number: see the test of eight against one."""
    _, state = steps_and_state(tiny_config, tuple(jax.devices()[:before]))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, Timing())
    checkpoints.close()
    tiny_config.seed = 1
    _, template = steps_and_state(tiny_config, tuple(jax.devices()[:after]))
    restored, _ = Checkpoints(tmp_path).restore(template)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(restored), jax.device_get(state))
    for leaf in jax.tree.leaves(restored):
        assert leaf.devices() == set(jax.devices()[:after])


def test_a_batch_that_the_devices_do_not_divide_is_refused(tiny_config):
    tiny_config.batch_size = 12
    with pytest.raises(UserError, match="batch_size must be a multiple of the 8 devices, got 12"):
        setup.open_data(from_config(tiny_config))


def test_images_of_any_size_need_a_size(tiny_config):
    tiny_config.data.name = "pictures"
    with pytest.raises(UserError, match=r"images of pictures differ in size: set data.image_size"):
        setup.image_shape(from_config(tiny_config), (None, None, 3))
    tiny_config.data.image_size = 96
    assert setup.image_shape(from_config(tiny_config), (None, None, 3)) == (96, 96, 3)


def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_exactly(
    one_program, tmp_path, monkeypatch, few_test_pictures
):
    one_program.duration = "4 steps"
    one_program.eval_every = "2 steps"
    one_program.checkpoint_every = "0 steps"
    whole = train(one_program, tmp_path / "whole")

    evaluations = []

    def evaluate(*arguments, before_batch, **_):
        evaluations.append(1)
        if len(evaluations) == 1:  # the validation after step 2
            os.kill(os.getpid(), signal.SIGTERM)
        before_batch([])
        return plain(*arguments)

    plain = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", evaluate)
    stopper = Stopper()
    with (
        pytest.raises(Stopped, match=rf"SIGTERM; step 2 of run is saved in {tmp_path}/stopped"),
        stopper.listening(),
    ):
        train(one_program, tmp_path / "stopped", stopper=stopper)
    resumed = train(one_program, tmp_path / "stopped")
    assert resumed["test"] == whole["test"]

    def validated(name):
        lines = map(json.loads, (tmp_path / name / METRICS).read_text().splitlines())
        return [(x["step"], x["validation/loss"]) for x in lines if "validation/loss" in x]

    assert validated("stopped") == validated("whole")
    assert [step for step, _ in validated("whole")] == [2, 4]
    # It was killed after its test and before it wrote the result.
    (tmp_path / "whole" / RESULT).unlink()
    lines = (tmp_path / "whole" / METRICS).read_text()
    assert train(one_program, tmp_path / "whole")["test"] == whole["test"]
    assert (tmp_path / "whole" / METRICS).read_text() == lines
    one_program.duration = "5 steps"  # the finished run is trained on
    assert train(one_program, tmp_path / "stopped")["steps"] == 5
    assert validated("stopped")[:2] == validated("whole")
    assert [step for step, _ in validated("stopped")] == [2, 4, 5]


@pytest.mark.parametrize("on_nan", ["stop", "skip"])
def test_an_update_that_overflows_never_becomes_a_result(
    tiny_config, tmp_path, few_test_pictures, on_nan
):
    """The loss of the step itself is finite; the parameters after it are not."""
    overflowing(tiny_config)
    tiny_config.on_nan = on_nan
    tiny_config.duration = "1 steps" if on_nan == "stop" else "12 steps"
    with pytest.raises(UserError, match="not finite"):
        train(tiny_config, tmp_path)
    assert not (tmp_path / RESULT).exists()
    if on_nan == "stop":
        assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
    assert "NaN" not in (tmp_path / METRICS).read_text()
