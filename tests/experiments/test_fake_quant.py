"""Training that rounds to 8 bits: what is rounded, and that LiteRT computes the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mnv2 import pretrained
from mnv2.deployment import formats
from mnv2.deployment.exported import open_exported
from mnv2.deployment.program import program_of
from mnv2.models.inference import for_inference
from mnv2.models.rounding import rounded, rounded_kernel
from tests.deployment.networks import SHORT, network, pixels


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
FIELDS = [
    {},
    {"bottleneck": "relu6", "shortcut": "expansion"},
    {"block": "hourglass"},
]


def calibrated(fields, images, quantized="channel"):
    """Returns a quantized network whose ranges are those of `images`."""
    loaded = network(**({"repeats": (1, 2, 0, 0, 0, 0, 0), "width": 0.35} | fields))
    model = loaded.model.clone(quantized=quantized, dropout=0.0, bn_momentum=0.0, bn_frozen=True)
    fresh = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3))))
    fresh = jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), fresh)
    variables = unflatten_dict({**flatten_dict(fresh), **flatten_dict(loaded.variables)})
    train = jax.jit(
        lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])[1],
        compiler_options=QUICK,
    )
    changed = train(loaded.preprocess(images.astype(np.float32)))
    variables = {"params": variables["params"], **changed}
    return dataclasses.replace(loaded, model=model, variables=variables)


@pytest.mark.parametrize("fields", FIELDS, ids=str)
def test_what_is_rounded_is_what_has_8_bits_in_litert(fields, tmp_path):
    """One range per tensor of the file. The ranges are those of a network that does not round yet,
    so the numbers agree no better than two roundings do.
    """
    pytest.importorskip("litert_converter")
    images = pixels(network(classes=4), 16)
    loaded = calibrated(fields, images)
    normalised = loaded.preprocess(images.astype(np.float32))
    path = tmp_path / "network.tflite"
    program = program_of(loaded, pixels=False, batch=len(images))
    path.write_bytes(formats.content(program, "litert-int8", [np.asarray(normalised)]))
    file = open_exported(path, threads=1)

    ranges = [path for path, _ in jax.tree_util.tree_leaves_with_path(loaded.variables)
              if path[-1].key == "high"]  # fmt: skip
    assert len(ranges) == 1 + sum("QUANTIZE" not in name for name in file.operators)
    theirs = file.logits(images.astype(np.float32))
    ours, folded, exact = (
        np.asarray(compute(normalised))
        for compute in (
            jax.jit(lambda x: loaded.model.apply(loaded.variables, x), compiler_options=QUICK),
            for_inference(loaded.model, loaded.variables),
            lambda x: program.logits(x),
        )
    )
    noise = np.abs(exact - theirs).mean()
    assert 0 < np.abs(ours - theirs).mean() < 1.5 * noise
    assert np.abs(ours - folded).mean() < noise


def test_a_network_is_not_quantized_unless_asked_and_can_be_saved_if_it_is(tmp_path):
    plain = network(repeats=SHORT, width=0.1)
    assert "rounding" not in str(jax.tree.structure(plain.variables))
    images = pixels(plain, 4)
    loaded = calibrated({"width": 0.1}, images, "tensor")
    pretrained.save(loaded, tmp_path / "weights.safetensors")
    again = pretrained.load(tmp_path / "weights.safetensors")
    assert again.model.quantized == "tensor"
    jax.tree.map(np.testing.assert_array_equal, again.variables, loaded.variables)
