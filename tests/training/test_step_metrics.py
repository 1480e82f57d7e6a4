import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2.training import step

measure = jax.jit(step.measure)
cross_entropy = jax.jit(step.cross_entropy, static_argnums=2)


@pytest.fixture
def batch():
    random = np.random.default_rng(0)
    logits = jnp.asarray(random.normal(size=(40, 10)), jnp.float32)
    return logits, jnp.asarray(random.integers(0, 10, 40), jnp.int32)


def test_losses_and_accuracies_are_those_of_numpy(batch):
    logits, labels = batch
    summary = step.summarize([measure(logits, labels, cross_entropy(logits, labels))])
    wide = np.asarray(logits, np.float64)
    right = wide[np.arange(40), labels]
    assert summary["loss"] == pytest.approx(np.mean(np.log(np.exp(wide).sum(1)) - right), rel=1e-6)
    assert summary["accuracy"] == np.mean(wide.argmax(1) == np.asarray(labels))
    order = np.argsort(-wide, axis=1)[:, :5]
    assert summary["top5_accuracy"] == np.mean(
        [y in row for y, row in zip(labels, order, strict=True)]
    )


def test_uneven_batches_add_up_to_the_whole(batch):
    logits, labels = batch
    losses = cross_entropy(logits, labels)
    whole = step.summarize([measure(logits, labels, losses)])
    parts = [slice(0, 3), slice(3, 30), slice(30, 40)]
    summed = step.summarize(measure(logits[part], labels[part], losses[part]) for part in parts)
    assert summed == pytest.approx(whole)


def test_masked_examples_do_not_count(batch):
    logits, labels = batch
    losses = cross_entropy(logits, labels)
    mask = jnp.asarray([1.0] * 25 + [0.0] * 15)
    masked = step.summarize([measure(logits, labels, losses, mask)])
    kept = step.summarize([measure(logits[:25], labels[:25], losses[:25])])
    assert masked == pytest.approx(kept)
    assert masked["examples"] == 25


def test_of_equal_logits_the_first_is_predicted_as_by_argmax():
    logits, labels = (
        jnp.asarray([[0.0] * 10] * 10 + [[3, 9, 9, 0, 9, 1, 2, 9, 9, 9]]),
        [*range(10), 2],
    )
    labels = jnp.asarray(labels)
    sums = measure(logits, labels, jnp.zeros(11))
    assert sums.accuracy == jnp.sum(jnp.argmax(logits, -1) == labels) == 1
    _, best = jax.lax.top_k(logits, 5)
    assert sums.top5_accuracy == jnp.sum(jnp.any(best == labels[:, None], -1)) == 6


def test_label_smoothing_mixes_in_the_uniform_distribution(batch):
    logits, labels = batch
    smoothed = cross_entropy(logits, labels, 0.1)
    uniform = jnp.mean(jnp.stack([cross_entropy(logits, labels * 0 + c) for c in range(10)]), 0)
    expected = 0.9 * cross_entropy(logits, labels) + 0.1 * uniform
    np.testing.assert_allclose(smoothed, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_hit_and_is_found(value):
    logits = jnp.array([[value, value, value], [0.0, value, 1.0], [value, 0.0, 0.0]])
    labels = jnp.array([0, 0, 0])
    sums = measure(logits, labels, cross_entropy(logits, labels))
    assert sums.accuracy == sums.top5_accuracy == 0
    assert step.first_not_finite([sums]) == 0


def test_norms_are_those_of_all_arrays_together():
    rng = np.random.default_rng(0)
    before = {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=5)}
    after = jax.tree.map(lambda x: x + rng.normal(size=x.shape), before)
    assert float(step.norm(before)) == pytest.approx(float(optax.global_norm(before)))
    norms = step.parameter_norms(after, step.joined(before))
    changes = jax.tree.map(np.subtract, after, before)
    expected = (float(optax.global_norm(after)), float(optax.global_norm(changes)))
    assert tuple(map(float, norms)) == pytest.approx(expected, rel=1e-5)
