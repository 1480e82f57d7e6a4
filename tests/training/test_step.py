"""Single steps: on several devices, with averages, and what is done if one is not finite."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2 import data
from mnv2.models import create_model, with_conventions
from mnv2.ops import PLAIN, traced_for
from mnv2.pretrained import Preprocessing
from mnv2.training import evaluation, setup
from mnv2.training.config import from_config
from mnv2.training.state import create_state
from mnv2.training.step import replicate, shard
from tests.variables import random_variables
from tests.views import eval_view_of, view_of

SHAPE = (28, 28, 1)


@pytest.fixture
def two_blocks(tiny_config):
    """The second one expands its channels, in an operation with gradients of its own."""
    tiny_config.model.repeats = (1, 1, 0, 0, 0, 0, 0)
    return tiny_config


def steps_and_state(config, devices=None):
    settings = from_config(config)
    model = setup.set_up(settings).model
    steps = setup.steps_of(
        settings, model, Preprocessing(), total_steps=100, examples=1000, devices=devices
    )
    state = create_state(model, steps.optimizer, SHAPE, seed=config.seed, ema=config.ema_decay > 0)
    return steps, replicate(state, devices)


def random_batch(size):
    random = np.random.default_rng(0)
    return {
        "image": random.integers(0, 256, (size, *SHAPE)).astype(np.uint8),
        "label": random.integers(0, 10, size).astype(np.int32),
    }


def test_a_step_on_eight_devices_equals_one_on_one_device(two_blocks):
    two_blocks.ema_decay = 0.9
    two_blocks.optimization.warmup = "0 steps"  # or the first step would change nothing
    batch, key = random_batch(16), jax.random.key(0)
    after = {}
    for count in (1, 8):
        devices = tuple(jax.devices()[:count])
        steps, state = steps_and_state(two_blocks, devices)
        before = jax.device_get(state.params)
        state, sums = steps.train(state, shard(batch, devices), key, None)
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


def test_each_group_of_devices_normalises_its_own_images(two_blocks):
    """With groups of 2 of 4 devices, a step averages two steps on half of the batch."""
    two_blocks.optimization.warmup = "0 steps"
    two_blocks.optimization.optimizer = "sgd"
    batch, key = random_batch(16), jax.random.key(0)
    batch["image"][8:] //= 4  # the halves have other statistics
    halves = [{name: x[i : i + 8] for name, x in batch.items()} for i in (0, 8)]

    def after(batch, devices, group):
        two_blocks.bn_group = group
        two_blocks.batch_size = len(batch["label"])
        some = tuple(jax.devices()[:devices])
        steps, state = steps_and_state(two_blocks, some)
        state, _ = steps.train(state, shard(batch, some), key, None)
        return jax.device_get({"params": state.params, "batch_stats": state.batch_stats})

    of_halves = [after(half, 2, None) for half in halves]
    means = [one["batch_stats"]["stem"]["bn"]["mean"] for one in of_halves]
    assert not np.allclose(*means, rtol=1e-2)  # so all 4 devices together have another variance
    expected = jax.tree.map(lambda one, other: (one + other) / 2, *of_halves)
    grouped = after(batch, 4, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), grouped, expected
    )


def test_averages_start_with_a_short_memory_and_cover_the_statistics_of_batch_norm(two_blocks):
    two_blocks.ema_decay = 0.9  # as above; the decay grows from 0.1 to 0.25 here
    two_blocks.optimization.warmup = "0 steps"
    devices = tuple(jax.devices()[:1])
    steps, state = steps_and_state(two_blocks, devices)
    expected = jax.device_get(state.ema)
    batch, key = random_batch(16), jax.random.key(0)
    for number in range(3):
        state, _ = steps.train(state, shard(batch, devices), key, None)
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
    model = create_model(fields.pop("name"), num_classes=10, **fields)
    model = with_conventions(model, dtype=jnp.float64)
    variables = jax.device_put(jax.tree.map(np.float64, random_variables(model, 1)))

    def loss_of(params, batch):
        logits, _ = model.apply(
            {**variables, "params": params}, batch["image"], train=True, mutable=["batch_stats"]
        )
        chosen = jax.nn.log_softmax(logits)[jnp.arange(len(logits)), batch["label"]]
        return -chosen.mean()

    @jax.jit
    def step(params, batch):
        loss, gradients = jax.value_and_grad(loss_of)(params, batch)
        return loss, jax.tree.map(lambda x, g: x - 0.01 * g, params, gradients)

    params = variables["params"]
    for batch in batches:
        loss, params = step(params, batch)
        yield float(loss)


def test_the_training_curve_is_that_of_the_plain_operations(two_blocks, fashion_mnist):
    # In float64, since in float32 either form's rounding errors change the third step's gradient
    # by its own size.
    batches = data.train_batches(fashion_mnist, 16, seed=0, view=view_of(size=SHAPE[:2]))
    batches = [
        {"image": batch["image"][:, ::2, ::2] / 127.5 - 1, "label": batch["label"]}
        for batch in itertools.islice(batches, 5)
    ]
    with jax.enable_x64(True):
        ours = list(losses(two_blocks, batches))
        with traced_for(PLAIN):
            theirs = list(losses(two_blocks, batches))
    assert np.ptp(ours) > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)


def evaluated(steps, state, batch):
    return steps.evaluate(state, shard(batch))


def test_an_evaluation_counts_all_test_images_once_whatever_the_batch_size(
    tiny_config, fashion_mnist, few_test_pictures
):
    steps, state = steps_and_state(tiny_config)
    view = eval_view_of(size=SHAPE[:2])
    summaries = [
        evaluation.evaluate(
            partial(evaluated, steps, state), fashion_mnist, "test", batch_size, view
        )
        for batch_size in (40, 95, 128)
    ]
    assert [summary["examples"] for summary in summaries] == [96] * 3
    for summary in summaries[1:]:
        assert summary == pytest.approx(summaries[0], rel=1e-5)


def test_a_step_that_is_not_finite_can_be_skipped_and_changes_nothing(tiny_config):
    tiny_config.on_nan = "skip"
    tiny_config.ema_decay = 0.9
    tiny_config.optimization.warmup = "0 steps"
    devices = tuple(jax.devices()[:2])
    steps, state = steps_and_state(tiny_config, devices)
    good, bad, key = random_batch(16), random_batch(16), jax.random.key(0)
    for batch in (good, bad):
        batch["image"] = batch["image"].astype(np.float32)
    bad["image"][3, 5, 5] = np.nan
    state, sums = steps.train(state, shard(good, devices), key, None)
    assert sums.skipped_steps == 0
    before = jax.device_get(state)
    state, sums = steps.train(state, shard(bad, devices), key, None)
    assert sums.skipped_steps == sums.skipped_in_a_row == 1
    assert sums.examples == 0
    after = jax.device_get(state)
    assert after.step == before.step + 1
    for name in ("params", "batch_stats", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    momentum = [x for x in jax.tree.leaves(after.opt_state) if x.ndim]
    assert momentum
    assert all(np.isfinite(x).all() for x in momentum)
    state, sums = steps.train(state, shard(bad, devices), key, None)
    assert sums.skipped_in_a_row == 2
    state, sums = steps.train(state, shard(good, devices), key, None)
    assert np.isfinite(sums.loss)
    assert sums.examples == 16
    assert sums.skipped_in_a_row == 0
    assert (int(state.skipped), int(state.skipped_in_a_row)) == (2, 0)
