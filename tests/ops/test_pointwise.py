import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mnv2.ops import pointwise, pointwise_conv


def random_inputs(dtype=np.float64):
    random = np.random.default_rng(0)
    images = jnp.asarray(random.normal(size=(3, 5, 4, 6)), dtype)
    return images, jnp.asarray(random.normal(size=(1, 1, 6, 8)), dtype)


def test_the_result_and_its_gradients_equal_those_of_the_convolution(float64):
    inputs = random_inputs()
    for run in (pointwise_conv, jax.jit(pointwise_conv)):
        (ours, back), (expected, expected_back) = (
            jax.vjp(conv, *inputs) for conv in (run, pointwise._conv)
        )
        np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)
        gradient = jnp.cos(jnp.arange(ours.size, dtype=ours.dtype)).reshape(ours.shape)
        for result, reference in zip(back(gradient), expected_back(gradient), strict=True):
            np.testing.assert_allclose(result, reference, rtol=1e-12, atol=1e-12)
    check_grads(jax.jit(pointwise_conv), inputs, order=1, modes=["rev"], rtol=1e-6)


def test_half_precision_stays_half_precision():
    images, kernel = random_inputs(jnp.bfloat16)
    result, back = jax.vjp(pointwise_conv, images, kernel)
    assert {x.dtype for x in (result, *back(result))} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("tpu", 2), ("cuda", 2)])
def test_the_implementation_is_chosen_for_the_target_platform(platform, convolutions):
    inputs = random_inputs(np.float32)
    backward = jax.jit(jax.grad(lambda x, w: pointwise_conv(x, w).sum(), argnums=(0, 1)))
    exported = jax.export.export(backward, platforms=[platform])(*inputs)
    assert exported.mlir_module().count("stablehlo.convolution") == convolutions
