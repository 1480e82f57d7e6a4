"""Training that rounds to 8 bits: what is rounded, and that LiteRT computes the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.paper.fake_quant import (
    GRANULARITIES,
    FakeQuant,
    rounded,
    rounded_kernel,
    without_ranges,
)
from mnv2.deployment import formats
from mnv2.deployment.exported import open_exported
from mnv2.deployment.program import program_of
from mnv2.models import with_conventions
from mnv2.ops import PLAIN, traced_for
from tests.deployment.networks import network, pixels


def test_a_rounded_kernel_has_255_values_per_channel_whatever_their_scale():
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 40, 5)), jnp.float32)
    factors = jnp.asarray([1e-3, 0.5, 1.0, -3.0, 0.0])
    ours = rounded_kernel(kernel * factors)
    np.testing.assert_allclose(ours, rounded_kernel(kernel) * factors, rtol=1e-5, atol=1e-9)
    steps = 127 * ours / jnp.max(jnp.abs(ours), axis=(0, 1, 2)).clip(1e-9)
    np.testing.assert_allclose(steps, jnp.round(steps), atol=1e-3)
    gradient = jax.grad(lambda k: jnp.sum(rounded_kernel(k) * kernel))(kernel)
    np.testing.assert_array_equal(gradient, kernel)


def test_a_rounded_tensor_has_256_values_with_zero_and_a_gradient_within_its_range():
    x = jnp.linspace(-2, 7, 5001)
    y = rounded(x, jnp.asarray([-1.3]), jnp.asarray([6.1]))
    values = np.unique(y)
    assert len(values) == 256
    assert 0 in values
    scale = 7.4 / 255
    inside = (x > values[0]) & (x < values[-1])
    np.testing.assert_allclose(y[inside], x[inside], atol=scale / 2 * 1.001)
    gradient = jax.grad(lambda x: jnp.sum(rounded(x, jnp.asarray([-1.3]), jnp.asarray([6.1]))))(x)
    np.testing.assert_array_equal(gradient, inside)


QUICK = {"xla_backend_optimization_level": 0}


def calibrated(loaded, images, granularity="channel"):
    """Returns a network that rounds, and its variables with the ranges of `images`."""
    model = FakeQuant(
        with_conventions(loaded.model.clone(dropout=0.0), bn_momentum=0.0), granularity
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert set(flatten_dict(without_ranges(shapes))) == set(flatten_dict(loaded.variables))
    unknown = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), flatten_dict(shapes))
    variables = unflatten_dict({**unknown, **flatten_dict(loaded.variables)})
    train = jax.jit(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[1],
        compiler_options=QUICK,
    )
    with traced_for(PLAIN):
        changed = flatten_dict(train(loaded.preprocess(images.astype(np.float32))))
    ranges = {path: x for path, x in changed.items() if path[-1] in ("low", "high")}
    return model, unflatten_dict({**flatten_dict(variables), **ranges})


def test_what_is_rounded_is_what_has_8_bits_in_litert(tmp_path):
    """One range per tensor of the file. The ranges are those of a network that does not round yet,
    so the numbers agree no better than two roundings do.
    """
    pytest.importorskip("litert_converter")
    loaded = network(repeats=(1, 2, 0, 0, 0, 0, 0), width=0.35, bn_frozen=True)
    images = pixels(loaded, 16)
    model, variables = calibrated(loaded, images)
    normalised = loaded.preprocess(images.astype(np.float32))
    path = tmp_path / "network.tflite"
    program = program_of(loaded, pixels=False, batch=len(images))
    path.write_bytes(formats.content(program, "litert-int8", [np.asarray(normalised)]))
    file = open_exported(path, threads=1)

    ranges = [path for path in flatten_dict(variables) if path[-1] == "high"]
    assert len(ranges) == 1 + sum("QUANTIZE" not in name for name in file.operators)
    in_litert = file.logits(images.astype(np.float32))
    ours = jax.jit(lambda x: model.apply(variables, x), compiler_options=QUICK)(normalised)
    noise = np.abs(program.logits(normalised) - in_litert).mean()
    assert 0 < np.abs(ours - in_litert).mean() < 1.5 * noise


def test_gradients_pass_the_rounding():
    loaded = network(repeats=(1, 2, 0, 0, 0, 0, 0), width=0.1)
    images = pixels(loaded, 4)
    x = loaded.preprocess(images.astype(np.float32))

    def gradient(apply, variables):
        def loss(params):
            of_params = {**variables, "params": params}
            return jnp.sum(apply(of_params, x, train=True, mutable=["batch_stats"])[0] ** 2)

        with traced_for(PLAIN):
            found = jax.jit(jax.grad(loss), compiler_options=QUICK)(variables["params"])
        return np.concatenate([np.ravel(array) for array in jax.tree.leaves(found)])

    exact = gradient(loaded.model.clone(dropout=0.0).apply, loaded.variables)
    for granularity in GRANULARITIES:
        model, variables = calibrated(loaded, images, granularity)
        assert 0.9 < np.corrcoef(gradient(model.apply, variables), exact)[0, 1] < 1, granularity
