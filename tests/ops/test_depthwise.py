import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.ops import (
    PLAIN,
    conv,
    depthwise,
    depthwise_conv,
    explicit_padding,
    shifted_products,
    traced_for,
)

# Every geometry, half of them with ReLU6: each size, stride and convention has both.
GEOMETRIES = list(itertools.product(((6, 6), (7, 5), (1, 4)), (1, 2), ("same", "symmetric")))
WIDE = depthwise.DIAGONAL_CHANNELS + 1
CASES = [
    *(("cpu", *geometry, 3, 4, i.bit_count() % 2 == 0) for i, geometry in enumerate(GEOMETRIES)),
    # Several chunks of one image and of two.
    ("cpu", (12, 12), 1, "same", 7, 32, True),
    ("cpu", (12, 12), 1, "same", 64, 32, False),
    ("cpu", (12, 12), 2, "same", 64, 32, True),
    ("cuda", (7, 6), 1, "same", 3, 4, False),
    ("cuda", (7, 6), 1, "symmetric", 3, 4, True),
    ("cuda", (7, 6), 2, "same", 3, 4, True),
    ("cuda", (7, 6), 2, "symmetric", 3, 4, False),
    ("tpu", (7, 6), 1, "same", 3, 4, False),
    ("tpu", (7, 6), 1, "symmetric", 3, 4, True),
    ("tpu", (7, 6), 2, "same", 3, 4, True),
    ("tpu", (7, 6), 1, "symmetric", 3, WIDE, False),
    (PLAIN, (7, 6), 2, "same", 3, 4, True),
]


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
    """XLA's own operation, whose gradients are JAX's."""
    images = jnp.clip(images, 0, 6) if of_relu6 else images
    return conv(images, kernel, stride, padding, groups=images.shape[-1])


@pytest.mark.parametrize(
    ("platform", "size", "stride", "convention", "batch", "channels", "of_relu6"), CASES
)
def test_results_and_gradients_equal_those_of_the_grouped_convolution_in_float64(
    float64, platform, size, stride, convention, batch, channels, of_relu6
):
    images, kernel, *options = random_inputs(size, stride, convention, batch, channels)
    count = shifted_products._images_per_chunk(images)
    assert (count < batch) == (batch in (7, 64))

    def all_of(convolve):
        result, back = jax.vjp(lambda x, w: convolve(x, w, *options, of_relu6), images, kernel)
        return result, *back(jnp.cos(jnp.arange(1.0 * result.size)).reshape(result.shape))

    with traced_for(platform):
        ours, expected = jax.jit(lambda: tuple(map(all_of, (depthwise_conv, grouped))))()
    for a, b in zip(ours, expected, strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


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
