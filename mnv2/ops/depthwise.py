"""Depthwise convolution: one k x k filter a channel.

On GPU and TPU this is XLA's grouped convolution. XLA's CPU backend has no good kernel for that:
forward it is about ten times slower than the arithmetic needs, and its weight gradient computes
the full C x C convolution only to keep the diagonal. On CPU, therefore:

  forward    the sum of k*k shifted products, which XLA fuses into one pass over the image;
  backward   the images' gradient is again a sum of shifted products. The kernel's is nine sums
             over the whole batch, taken in one scan over it, so that a few images' planes are in
             cache for all nine. They are added up row by row, which XLA vectorises over channels;
             a product that contracts the whole image makes it copy each of the k*k windows first
             (training MobileNetV2 at 224 pixels, batch 32: 1.23 s a step with it, 0.98 s
             without). XLA runs a scan on one thread, beside whatever else is ready: with the
             images' gradient in it too, that step took 1.03 s, without it 0.88 s.

The choice is made when the program is lowered, not when it is traced, so a program exported for
a TPU from a machine with a CPU gets the convolution.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.conv import conv
from mnv2.ops.padding import Padding
from mnv2.ops.precision import accumulator
from mnv2.ops.relu6 import relu6

# What one iteration of the backward scan reads: small enough for a core's L2 cache with the
# padded copy and the gradients beside it, large enough to hide an iteration's overhead.
CACHED_BYTES = 128 * 1024

# Rows of an image that are added up in one pass of the kernel's gradient, before the sums are kept
# from chunk to chunk. At 224 pixels 4 and 8 are equally fast, 64 costs 15 % of a training step.
ROWS_AT_ONCE = 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    stride: int,
    padding: Padding,
    of_relu6: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Convolves every channel with its own filter (MobileNetV1 equation 3).

    With `of_relu6`, of relu6(images): in one pass with it, forward and backward. Sums are kept in
    float32 where the images are of half precision; the result has their type.
    """
    settings = {"stride": stride, "padding": padding, "of_relu6": of_relu6}
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(_shifted_products, **settings),
        default=functools.partial(_grouped_conv, **settings),
    )


def _forward(images, kernel, *settings):
    return depthwise_conv(images, kernel, *settings), (images, kernel)


def _backward(stride, padding, of_relu6, saved, gradient):
    settings = {"stride": stride, "padding": padding, "of_relu6": of_relu6}
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_gradients_on_cpu, **settings),
        default=functools.partial(_gradients_of_grouped_conv, **settings),
    )


depthwise_conv.defvjp(_forward, _backward)


def _grouped_conv(images, kernel, *, stride, padding, of_relu6):
    images = relu6(images) if of_relu6 else images
    return conv(images, kernel, stride, padding, groups=images.shape[-1])


def _gradients_of_grouped_conv(images, kernel, gradient, **settings):
    convolve = functools.partial(_grouped_conv, **settings)
    return jax.vjp(convolve, images, kernel)[1](gradient)


def _shifted_products(images, kernel, *, stride, padding, of_relu6):
    taps = kernel[:, :, 0].astype(accumulator(images.dtype))
    images = relu6(images) if of_relu6 else images
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    out = sum(window * taps[i, j] for i, j, window in _windows(padded, kernel.shape[0], stride))
    return out.astype(images.dtype)


def _gradients_on_cpu(images, kernel, gradient, *, stride, padding, of_relu6):
    spread = _spread(gradient, images.shape[1:3], len(kernel), stride, padding)
    if stride == 1:
        # Both gradients read it: without the barrier XLA would compute it twice (2 % of a step).
        spread = lax.optimization_barrier(spread)
    turned = kernel[::-1, ::-1, 0].astype(accumulator(images.dtype))
    image_gradient = sum(window * turned[i, j] for i, j, window in _windows(spread, len(kernel), 1))
    if of_relu6:
        image_gradient = jnp.where((images > 0) & (images < 6), image_gradient, 0)
    return (
        image_gradient.astype(images.dtype),
        _kernel_gradient(images, kernel, gradient, spread, stride, padding, of_relu6),
    )


def _spread(gradient, shape, size, stride, padding):
    """The gradient with zeros between and around its pixels.

    Its plain correlation with the kernel turned by 180 degrees is the images' gradient.
    """

    def zeros(length, outputs, low):
        covered = stride * (outputs - 1) + 1
        before = size - 1 - low
        return before, length + size - 1 - covered - before, stride - 1

    lows = padding[0][0], padding[1][0]
    rows, columns = map(zeros, shape, gradient.shape[1:3], lows)
    nothing = jnp.zeros((), gradient.dtype)
    return lax.pad(gradient, nothing, ((0, 0, 0), rows, columns, (0, 0, 0)))


def _kernel_gradient(images, kernel, gradient, spread, stride, padding, of_relu6):
    size, dtype = len(kernel), accumulator(images.dtype)

    def one_chunk(sums, images_and_gradients):
        chunk, out = images_and_gradients
        chunk = relu6(chunk) if of_relu6 else chunk
        if stride == 1:
            # Sliding the padded gradient over the image spares a padded image.
            pairs = [(chunk, window) for _, _, window in _windows(out, size, 1)][::-1]
        else:
            padded = jnp.pad(chunk, ((0, 0), *padding, (0, 0)))
            pairs = [(window, out) for _, _, window in _windows(padded, size, stride)]
        products = (a.astype(dtype) * b for a, b in pairs)
        return [total + _add_rows(x) for total, x in zip(sums, products, strict=True)], None

    at_once = _images_at_once(images)
    parts = _split(images, at_once), _split(spread if stride == 1 else gradient, at_once)
    summed = images if stride == 1 else gradient
    zeros = jnp.zeros_like(_add_rows(summed[:at_once].astype(dtype)))
    sums, _ = lax.scan(one_chunk, [zeros] * size**2, parts)
    total = jnp.stack([jnp.sum(x, (0, 1, 2)) for x in sums])
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _add_rows(products: Array) -> Array:
    """(n, h, w, c) -> (n, h / m, w, c): sums of m rows, m as large as ROWS_AT_ONCE allows."""
    height = products.shape[1]
    at_once = max(m for m in range(1, ROWS_AT_ONCE + 1) if height % m == 0)
    left = height // at_once
    return functools.reduce(
        jnp.add, (products[:, i * left : (i + 1) * left] for i in range(at_once))
    )


def _images_at_once(images: Array) -> int:
    """The largest divisor of the batch whose images fill no more than CACHED_BYTES."""
    batch = images.shape[0]
    fitting = CACHED_BYTES * batch // images.nbytes
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fitting), default=1)


def _split(images: Array, at_once: int) -> Array:
    return images.reshape(-1, at_once, *images.shape[1:])


def _windows(padded: Array, size: int, stride: int) -> Iterator[tuple[int, int, Array]]:
    """Yields (i, j, what tap (i, j) of a size x size filter sees of the padded images)."""
    height, width = padded.shape[1:3]
    for i in range(size):
        for j in range(size):
            # The last row and column that tap (i, j) reaches, for the last output.
            bottom, right = i + height - size + 1, j + width - size + 1
            yield i, j, padded[:, i:bottom:stride, j:right:stride]
