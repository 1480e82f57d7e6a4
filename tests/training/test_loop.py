import itertools
import json
import os
import signal
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2 import data
from mnv2.data.datasets import TfdsDataset
from mnv2.models import create_model
from mnv2.ops import PLAIN, traced_for
from mnv2.pretrained import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.layout import METRICS, RESULT
from mnv2.training import evaluation, log, loop, metrics, settings, setup
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.state import create_state
from mnv2.training.steps import create_steps

SHAPE = (28, 28, 1)


def steps_and_state(config, devices=None):
    of_run = settings.from_config(config)
    model = setup.set_up(of_run).model
    steps = create_steps(
        model, of_run, Preprocessing(), total_steps=100, examples=1000, devices=devices
    )
    state = create_state(
        setup.set_up(of_run).model,
        steps.optimizer,
        SHAPE,
        seed=config.seed,
        ema=config.ema_decay > 0,
    )
    return steps, steps.place(state)


def train(config, folder, **arguments):
    return loop.train(settings.from_config(config), folder, **arguments)


@pytest.fixture
def one_program(tiny_config):
    """The config of several tests, so that its steps are compiled once for all of them.

    Its learning rate does not depend on the duration.
    """
    tiny_config.data.augmentation = "crop_flip"
    tiny_config.model.dropout = 0.3
    tiny_config.ema_decay = 0.9
    tiny_config.optimization.schedule = "constant"
    return tiny_config


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_logged(tiny_config, tmp_path, value):
    curves = log.MetricsLog(tmp_path)
    curves.resume(0, settings.from_config(tiny_config))
    curves.write(1, {"train/loss": 0.5})
    with pytest.raises(UserError, match=f"train/loss is {value}, which is not a finite number"):
        curves.write(2, {"train/loss": value})
    curves.close()
    assert (tmp_path / METRICS).read_text() == '{"step": 1, "train/loss": 0.5}\n'


def random_batch(size):
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (size, *SHAPE)).astype(np.uint8),
        "label": random.integers(0, 10, size).astype(np.int32),
    }


def test_a_step_on_eight_devices_equals_one_on_one_device(tiny_config):
    tiny_config.ema_decay = 0.9
    tiny_config.optimization.warmup = "0 steps"  # or the first step would change nothing
    batch, key = random_batch(16), jax.random.key(0)
    after = {}
    for count in (1, 8):
        steps, state = steps_and_state(tiny_config, tuple(jax.devices()[:count]))
        before = jax.device_get(state.params)
        state, sums = steps.train(state, steps.shard(batch), key)
        after[count] = jax.device_get(
            {"params": state.params, "ema": state.ema, "batch_stats": state.batch_stats,
             "momentum": state.opt_state, "sums": sums}
        )  # fmt: skip
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, after[count]["params"])
        assert min(jax.tree.leaves(moved["classifier"])) > 0
    jax.tree.map(
        lambda one, eight: np.testing.assert_allclose(eight, one, rtol=2e-3, atol=2e-5),
        after[1],
        after[8],
    )


def test_each_group_of_devices_normalises_its_own_images(tiny_config):
    """With groups of 2 of 4 devices, a step averages two steps on half of the batch."""
    tiny_config.optimization.warmup = "0 steps"
    tiny_config.optimization.momentum = 0.0
    batch, key = random_batch(16), jax.random.key(0)
    batch["image"][8:] //= 4  # the halves have other statistics
    halves = [{name: x[i : i + 8] for name, x in batch.items()} for i in (0, 8)]

    def after(batch, devices, group):
        tiny_config.bn_group = group
        tiny_config.batch_size = len(batch["label"])
        steps, state = steps_and_state(tiny_config, tuple(jax.devices()[:devices]))
        state, _ = steps.train(state, steps.shard(batch), key)
        return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})

    of_halves = [after(half, 2, None) for half in halves]
    means = [one["batch_stats"]["stem"]["bn"]["mean"] for one in of_halves]
    assert not np.allclose(*means, rtol=1e-2)  # so all 4 devices together have another variance
    expected = jax.tree.map(lambda one, other: (one + other) / 2, *of_halves)
    grouped = after(batch, 4, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), grouped, expected
    )


def test_averages_start_with_a_short_memory_and_cover_the_statistics_of_batch_norm(tiny_config):
    tiny_config.ema_decay = 0.9  # as above; the decay grows from 0.1 to 0.25 here
    tiny_config.optimization.warmup = "0 steps"
    steps, state = steps_and_state(tiny_config, tuple(jax.devices()[:1]))
    expected = jax.device_get(state.ema)
    batch, key = random_batch(16), jax.random.key(0)
    for number in range(3):
        state, _ = steps.train(state, steps.shard(batch), key)
        decay = (1 + number) / (10 + number)
        new = jax.device_get({"params": state.params, "batch_stats": state.batch_stats})
        expected = jax.tree.map(lambda a, b, d=decay: d * a + (1 - d) * b, expected, new)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.ema, expected
    )
    assert state.variables() is state.ema


def losses(config, batches):
    """Of plain gradient descent in float64."""
    fields = config.model.to_dict()
    model = create_model(fields.pop("name"), num_classes=10, **fields).clone(dtype=jnp.float64)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 14, 14, 1)))
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)

    def loss_of(params, batch):
        logits, _ = model.apply(
            {**variables, "params": params}, batch["image"], train=True, mutable=["batch_stats"]
        )
        chosen = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["label"]]
        return -chosen.mean()

    step = jax.jit(jax.value_and_grad(loss_of))
    params = variables["params"]
    for batch in batches:
        loss, gradients = step(params, batch)
        params = jax.tree.map(lambda x, g: x - 0.01 * g, params, gradients)
        yield float(loss)


def test_the_training_curve_is_that_of_the_plain_operations(tiny_config, fashion_mnist):
    # In float64, since in float32 either form's rounding errors change the third step's gradient
    # by its own size.
    batches = data.train_batches(fashion_mnist, 16, seed=0, view=data.View(SHAPE[:2]))
    batches = [
        {"image": batch["image"][:, ::2, ::2] / 127.5 - 1, "label": batch["label"]}
        for batch in itertools.islice(batches, 5)
    ]
    with jax.enable_x64(True):
        ours = list(losses(tiny_config, batches))
        with traced_for(PLAIN):
            theirs = list(losses(tiny_config, batches))
    assert np.ptp(ours) > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def test_an_evaluation_counts_all_test_images_once_whatever_the_batch_size(
    tiny_config, fashion_mnist
):
    steps, state = steps_and_state(tiny_config)
    view = partial(data.eval_image, size=SHAPE[:2])
    summaries = [
        evaluation.evaluate(partial(steps.evaluate, state), fashion_mnist, "test", batch_size, view)
        for batch_size in (96, 999, 4096)
    ]
    assert [summary["examples"] for summary in summaries] == [10_000] * 3
    for summary in summaries[1:]:
        assert summary == pytest.approx(summaries[0], rel=1e-5)


class Killed(Exception):
    pass


def test_a_resumed_run_ends_exactly_as_an_uninterrupted_one(
    one_program, tmp_path, monkeypatch, few_test_pictures
):
    check_resumed(one_program, tmp_path, monkeypatch)


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
        lines = (tmp_path / name / METRICS).read_text().splitlines()
        return [
            {k: v for k, v in json.loads(line).items() if "second" not in k and "waiting" not in k}
            for line in lines
        ]

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


def test_a_short_run_learns_and_leaves_its_result(tiny_config, tmp_path):
    tiny_config.batch_size = 64
    tiny_config.duration = "80 steps"
    tiny_config.log_every = 20
    tiny_config.data.validation = 5000
    tiny_config.optimization.warmup = "10 steps"
    tiny_config.ema_decay = 0.9999
    result = train(tiny_config, tmp_path)
    # With averages of so long a memory, too: their decay grows from 0.1.
    assert result["test"]["accuracy"] > 0.4
    assert result["test"]["examples"] == 10_000
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


def test_a_step_that_is_not_finite_can_be_skipped_and_changes_nothing(tiny_config):
    tiny_config.on_nan = "skip"
    tiny_config.ema_decay = 0.9
    tiny_config.optimization.warmup = "0 steps"
    steps, state = steps_and_state(tiny_config, tuple(jax.devices()[:2]))
    good, bad, key = random_batch(16), random_batch(16), jax.random.key(0)
    for batch in (good, bad):
        batch["image"] = batch["image"].astype(np.float32)
    bad["image"][3, 5, 5] = np.nan
    state, sums = steps.train(state, steps.shard(good), key)
    assert metrics.skipped([sums]) == 0
    before = jax.device_get(state)
    state, sums = steps.train(state, steps.shard(bad), key)
    assert metrics.skipped([sums]) == metrics.skipped_in_a_row([sums]) == 1
    assert sums["examples"] == 0
    after = jax.device_get(state)
    assert after.step == before.step + 1
    for name in ("params", "batch_stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    momentum = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert momentum
    assert all(np.isfinite(x).all() for x in momentum)
    state, sums = steps.train(state, steps.shard(bad), key)
    assert metrics.skipped_in_a_row([sums]) == 2
    state, sums = steps.train(state, steps.shard(good), key)
    assert np.isfinite(sums["loss"])
    assert sums["examples"] == 16
    assert metrics.skipped_in_a_row([sums]) == 0
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)


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
        setup.open_data(settings.from_config(tiny_config))


def test_images_of_any_size_need_a_size(tiny_config, fashion_mnist):
    class Pictures(TfdsDataset):
        image_shape = (None, None, 3)

    pictures = Pictures("pictures", fashion_mnist.builder, 0)
    with pytest.raises(UserError, match=r"images of pictures differ in size: set data.image_size"):
        setup.image_shape(settings.from_config(tiny_config), pictures)
    tiny_config.data.image_size = 96
    assert setup.image_shape(settings.from_config(tiny_config), pictures) == (96, 96, 3)


def test_a_signal_ends_a_run_after_its_step_and_it_goes_on_exactly(
    one_program, tmp_path, monkeypatch, few_test_pictures
):
    one_program.duration = "4 steps"
    one_program.eval_every = "2 steps"
    one_program.checkpoint_every = "0 steps"
    whole = train(one_program, tmp_path / "whole")

    evaluations = []

    def evaluate(*arguments, after_batch, **_):
        evaluations.append(1)
        if len(evaluations) == 1:  # the validation after step 2
            os.kill(os.getpid(), signal.SIGTERM)
        after_batch({})
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


def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path, tiny_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    of_run = settings.from_config(tiny_config)
    first = log.MetricsLog(tmp_path)
    first.resume(0, of_run)
    for step in (10, 20, 30):
        first.write(step, {"train/loss": 1 / step})
    first.close()  # killed after step 30, with a checkpoint of step 20
    second = log.MetricsLog(tmp_path)
    second.resume(20, of_run)
    for step in (30, 40):
        second.write(step, {"train/loss": 2 / step})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [
        (event.step, float(make_ndarray(event.tensor_proto)))
        for event in events.Tensors("train/loss")
    ]
    assert dict(found) == pytest.approx({10: 0.1, 20: 0.05, 30: 2 / 30, 40: 0.05})
    assert len(found) == 4


def test_tensorboard_tells_runs_apart_by_every_field(tiny_config):
    of_run = settings.from_config(tiny_config)
    shown = log._hyperparameters(of_run)
    assert {"ema_decay", "data.augmentation", "data.validation", "seed"} <= shown.keys()
    assert shown.keys() == of_run.flat().keys()
