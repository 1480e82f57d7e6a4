"""The loss of a step and its gradients, for a network that is small enough to compile at once."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2.models.blocks import Conventions
from mnv2.preprocess import Pipeline
from mnv2.preprocess.mixing import partners
from mnv2.pretrained import Preprocessing
from mnv2.training.state import TrainState
from mnv2.training.step import Objective, Teacher, accumulated, measure, parallel, shard, train_step
from tests.views import on_device

PIXELS = Preprocessing()
KEY = jax.random.key(3)


class Small(nn.Module):
    """A convolution, batch norm if it is wanted, and a classifier for five classes."""

    normalised: bool = False
    conventions: Conventions = Conventions()
    num_classes: int = 5

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(4, (3, 3), use_bias=False, name="stem")(images)
        if self.normalised:
            x = nn.BatchNorm(not train, momentum=0.5, name="bn")(x)
        return nn.Dense(5, name="classifier")(jnp.mean(nn.relu(x), axis=(1, 2)))


@functools.partial(jax.jit, static_argnums=0)
def variables_of(model, seed=0):
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 6, 6, 3)), train=False)
    return {"batch_stats": {}, **variables}


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    return {"image": images, "label": random.integers(0, 5, 12)}


def compute(model, objective, batch, *, variables=None, step=0, teacher_variables=None, count=1):
    """Returns the gradients, the statistics and the metrics of a step on `count` devices."""
    variables = variables or variables_of(model)
    optimizer = optax.sgd(1.0)
    one_step = functools.partial(
        train_step, model=model, preprocess=PIXELS, optimizer=optimizer, objective=objective
    )
    params = jax.tree.map(jnp.copy, variables["params"])
    none = jnp.zeros((), jnp.int32)
    state = TrainState(
        none + step, params, variables["batch_stats"], optimizer.init(params), None, none, none
    )
    devices = tuple(jax.devices()[:count])
    on_device = parallel(one_step, devices=devices, in_axes=(None, 0, None, None), out_axes=None)
    after, metrics = on_device(state, shard(batch, devices), KEY, teacher_variables)
    return jax.tree.map(jnp.subtract, params, after.params), after.batch_stats, metrics


def assert_close(one, other, rtol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7), one, other)


@pytest.mark.parametrize("parts", [2, 3, 12])
def test_accumulating_parts_gives_the_gradients_of_the_whole_batch(batch, parts):
    whole, _, sums = compute(Small(), Objective(0.1), batch)
    found, _, of_parts = compute(Small(), Objective(0.1, accumulate=parts), batch)
    assert_close(found, whole)
    assert_close(of_parts, sums)


def test_with_accumulation_batch_norm_sees_one_part_after_another(batch):
    model = Small(normalised=True)
    variables = variables_of(model)
    _, after, _ = compute(model, Objective(accumulate=3), batch, variables=variables)
    expected = variables
    for start in (0, 4, 8):
        part = {name: rows[start : start + 4] for name, rows in batch.items()}
        _, stats, _ = compute(model, Objective(), part, variables=expected)
        expected = {**expected, "batch_stats": stats}
    assert_close(after, expected["batch_stats"])
    _, at_once, _ = compute(model, Objective(), batch, variables=variables)
    assert not np.allclose(after["bn"]["mean"], at_once["bn"]["mean"], rtol=1e-3)


def mix_until_9(mixup, cutmix):
    (call,) = on_device(f"mix({mixup}, {cutmix})").calls
    return Pipeline((call.replace(until=9),))


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_mixed_pictures_have_the_loss_of_their_mixed_labels(batch, alphas):
    model, mixing = Small(), mix_until_9(*alphas)
    variables = variables_of(model)
    _, _, sums = compute(model, Objective(0.1, mixing), batch, variables=variables, step=6)
    pixels = jnp.asarray(batch["image"], jnp.float32)
    mixed, share = mixing.calls[0](pixels, KEY, jnp.asarray(6))
    one_hot = jax.nn.one_hot(batch["label"], 5)
    target = optax.smooth_labels(share * one_hot + (1 - share) * partners(one_hot), 0.1)
    logits = model.apply(variables, PIXELS(mixed), train=True)
    np.testing.assert_allclose(
        sums.loss, optax.softmax_cross_entropy(logits, target).sum(), rtol=1e-5
    )
    assert 0 < share < 1


def test_after_its_last_step_nothing_is_mixed(batch):
    plain, _, _ = compute(Small(), Objective(), batch, step=9)
    found, _, _ = compute(Small(), Objective(pipeline=mix_until_9(0.4, 1.0)), batch, step=9)
    assert_close(found, plain)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distillation_is_hintons_and_a_network_like_its_teacher_has_no_distance(batch, temperature):
    model, theirs = Small(), variables_of(Small(), seed=7)
    teacher = Teacher(model, PIXELS, temperature, 0.25)
    ours = variables_of(model)
    _, _, sums = compute(
        model, Objective(teacher=teacher), batch, variables=ours, teacher_variables=theirs
    )
    logits, target = (
        model.apply(variables, PIXELS(batch["image"]), train=False) for variables in (ours, theirs)
    )
    labels = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    probabilities = jax.nn.softmax(target / temperature)
    distance = optax.losses.kl_divergence(jax.nn.log_softmax(logits / temperature), probabilities)
    expected = 0.25 * labels + 0.75 * temperature**2 * distance
    np.testing.assert_allclose(sums.loss, expected.sum(), rtol=1e-5)

    only = Teacher(model, PIXELS, temperature, 0.0)
    found, _, sums = compute(
        model, Objective(teacher=only), batch, variables=theirs, teacher_variables=theirs
    )
    np.testing.assert_allclose(sums.loss, 0, atol=1e-5)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found)) < 1e-6


class Dropping(Small):
    """Drops pixels before its classifier."""

    @nn.compact
    def __call__(self, images, *, train):
        x = images.reshape(len(images), -1)
        return nn.Dense(5, name="classifier")(nn.Dropout(0.5, deterministic=not train)(x))


def test_each_device_drops_other_units(batch):
    twice = {name: np.concatenate([values, values]) for name, values in batch.items()}
    _, _, alone = compute(Dropping(), Objective(), batch)
    _, _, both = compute(Dropping(), Objective(), twice, count=2)
    assert float(both.examples) == 2 * float(alone.examples)
    assert not np.isclose(both.loss, 2 * alone.loss, rtol=1e-3)


def test_each_part_of_a_batch_drops_other_units():
    metrics = measure(jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32), jnp.zeros(2))

    def gradient(params, batch_stats, rows, key):
        return jax.random.uniform(key), (batch_stats, metrics)

    key, rows = jax.random.key(0), {"image": jnp.zeros((4, 1))}
    mean, _ = accumulated(gradient, 2, jnp.zeros(()), {}, rows, key)
    of_parts = [jax.random.uniform(jax.random.fold_in(key, number)) for number in range(2)]
    np.testing.assert_allclose(mean, np.mean(of_parts), rtol=1e-6)
