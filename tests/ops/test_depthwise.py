import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mnv2.ops import (
    PLAIN,
    depthwise,
    depthwise_conv,
    explicit_padding,
    shifted_products,
    traced_for,
)

SIZES = [(6, 6), (7, 5), (1, 4)]


def random_inputs(size, stride, convention, batch=3, channels=4):
    random = np.random.default_rng(0)
    # A third of the values are below 0 and some are above 6, where ReLU6 is flat. None is at a kink
    # of ReLU6.
    images = 3 * (1 + 2 * random.normal(size=(batch, *size, channels)))
    for kink in (0, 6):
        images = np.where(abs(images - kink) < 0.1, kink + 0.2, images)
    images = jnp.asarray(images)
    kernel = jnp.asarray(random.normal(size=(3, 3, 1, channels)))
    return images, kernel, stride, explicit_padding(size, 3, stride, convention)


def grouped(images, kernel, stride, padding, of_relu6=False):
    return depthwise._grouped_conv(
        images, kernel, depthwise.DepthwiseOptions(stride, padding, of_relu6)
    )


@pytest.mark.parametrize("of_relu6", [False, True])
@pytest.mark.parametrize("convention", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_the_result_equals_the_grouped_convolution_in_float64(
    float64, size, stride, convention, of_relu6
):
    images, kernel, stride, padding = random_inputs(size, stride, convention)
    expected = grouped(jnp.clip(images, 0, 6) if of_relu6 else images, kernel, stride, padding)
    for run in (depthwise_conv, jax.jit(depthwise_conv, static_argnums=(2, 3, 4))):
        result = run(images, kernel, stride, padding, of_relu6)
        assert result.dtype == jnp.float64
        np.testing.assert_allclose(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("of_relu6", [False, True])
@pytest.mark.parametrize("convention", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_gradients_equal_finite_differences_in_float64(float64, size, stride, convention, of_relu6):
    images, kernel, stride, padding = random_inputs(size, stride, convention)
    check_grads(
        jax.jit(lambda x, w: depthwise_conv(x, w, stride, padding, of_relu6)),
        (images, kernel),
        order=1,
        modes=["rev"],
        rtol=1e-6,
    )


@pytest.mark.parametrize("of_relu6", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 7, 64])
def test_gradients_do_not_depend_on_the_number_of_images_per_chunk(
    float64, batch, stride, of_relu6
):
    images, kernel, stride, padding = random_inputs((12, 12), stride, "same", batch, channels=32)
    assert shifted_products._images_per_chunk(images) < batch or batch in (1, 7)
    convs = (
        functools.partial(conv, stride=stride, padding=padding, of_relu6=of_relu6)
        for conv in (depthwise_conv, grouped)
    )
    (ours, back), (expected, expected_back) = (jax.vjp(conv, images, kernel) for conv in convs)
    gradient = jnp.cos(jnp.arange(ours.size, dtype=ours.dtype)).reshape(ours.shape)
    for result, reference in zip(back(gradient), expected_back(gradient), strict=True):
        np.testing.assert_allclose(result, reference, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-12)


def test_float32_results_are_close_to_float64_results():
    images, kernel, stride, padding = random_inputs((14, 14), 1, "same", channels=16)
    result = depthwise_conv(images, kernel, stride, padding)
    with jax.enable_x64(True):
        wide = (np.asarray(images, np.float64), np.asarray(kernel, np.float64))
        reference = depthwise_conv(*map(jnp.asarray, wide), stride, padding)
    np.testing.assert_allclose(result, reference, rtol=1e-5, atol=1e-5)


def test_sums_of_half_precision_images_are_computed_in_float32():
    images, kernel, stride, padding = random_inputs((14, 14), 1, "same", channels=16)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (images, kernel))
    result = depthwise_conv(*half, stride, padding)
    assert result.dtype == jnp.bfloat16
    exact = depthwise_conv(*(x.astype(jnp.float32) for x in half), stride, padding)
    np.testing.assert_array_equal(result, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize("of_relu6", [False, True])
@pytest.mark.parametrize("convention", ["same", "symmetric"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [4, depthwise.DIAGONAL_CHANNELS + 1])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_forms_for_accelerators_compute_the_same_in_float64(
    float64, platform, channels, stride, convention, of_relu6
):
    inputs = random_inputs((7, 6), stride, convention, channels=channels)

    def all_of(conv, platform):
        with traced_for(platform):
            result, back = jax.vjp(lambda *x: conv(*x, *inputs[2:], of_relu6), *inputs[:2])
            return result, *back(jnp.cos(jnp.arange(1.0 * result.size)).reshape(result.shape))

    for a, b in zip(all_of(depthwise_conv, platform), all_of(grouped, PLAIN), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("platform", "forward", "backward"),
    [("cpu", 0, 0), ("cuda", 0, 1), ("tpu", 1, 2), ("rocm", 1, 2)],
)
def test_the_implementation_is_chosen_for_the_target_platform(platform, forward, backward):
    images, kernel, stride, padding = random_inputs((8, 8), 1, "same")

    def convolutions(function):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(images, kernel)
        return exported.mlir_module().count("stablehlo.convolution")

    assert convolutions(lambda x, w: depthwise_conv(x, w, stride, padding)) == forward
    gradients = jax.grad(lambda x, w: depthwise_conv(x, w, stride, padding).sum(), argnums=(0, 1))
    assert convolutions(gradients) == backward
