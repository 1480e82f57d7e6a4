"""Depthwise convolution: one k x k filter per channel.

On GPU and TPU this is the grouped convolution of XLA. The CPU backend of XLA has no good kernel
for it. Its forward pass is about ten times slower than the arithmetic needs. Its weight gradient
computes the full C x C convolution and keeps only the diagonal. Therefore, on CPU:

  forward    The result is the sum of k*k shifted products. XLA fuses them into one pass over the
             image.
  backward   The gradient for the images is again a sum of shifted products. The gradient for the
             kernel is k*k sums (nine for 3x3) over the whole batch. One scan over chunks of a few
             images computes all of them, so that a chunk stays in cache for all k*k sums. The
             products are added row by row, which XLA vectorises over channels. A product that
             contracts the whole image makes XLA copy each of the k*k windows first: a step of
             training MobileNetV2 at 224 pixels, batch 32, takes 1.23 s with it and 0.98 s without
             it. XLA runs a scan on one thread, in parallel with any other operation that is ready.
             For this reason the gradient for the images is not part of the scan: the same step
             takes 1.03 s with it inside and 0.88 s with it outside.

The implementation is chosen when the program is lowered, not when it is traced. A program that a
machine with a CPU exports for a TPU therefore contains the convolution.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.conv import conv
from mnv2.ops.padding import Padding
from mnv2.ops.precision import accumulator
from mnv2.ops.relu6 import relu6

# Bytes of images per chunk of the backward scan. A chunk must be small enough for the L2 cache of
# a core, together with its padded copy and its gradients, and large enough to hide the overhead of
# an iteration.
CACHED_BYTES = 128 * 1024

# At most this many rows of an image are added in one pass of the kernel's gradient, before the
# scan adds the sums of chunks. At 224 pixels 4 and 8 are equally fast; 64 costs 15 % of a training
# step.
ROWS_PER_SUM = 8

# The images and the kernel, or the gradients for both.
ImagesAndKernel = tuple[Float[Array, "n h w c"], Float[Array, "k k 1 c"]]


class Options(NamedTuple):
    """The settings of one depthwise convolution, as `depthwise_conv` takes them."""

    stride: int
    padding: Padding
    of_relu6: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    stride: int,
    padding: Padding,
    of_relu6: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Convolves every channel with its own filter (MobileNetV1, equation 3).

    With `of_relu6`, it convolves relu6(images) instead. ReLU6 then shares one pass over memory with
    the convolution, forward and backward. Sums are computed in float32 if the images have half
    precision; the result has the type of the images.
    """
    options = Options(stride, padding, of_relu6)
    return lax.platform_dependent(
        images,
        kernel,
        cpu=functools.partial(_shifted_products, options=options),
        default=functools.partial(_grouped_conv, options=options),
    )


def _forward(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    stride: int,
    padding: Padding,
    of_relu6: bool,
) -> tuple[Float[Array, "n h2 w2 c"], ImagesAndKernel]:
    return depthwise_conv(images, kernel, stride, padding, of_relu6), (images, kernel)


def _backward(
    stride: int,
    padding: Padding,
    of_relu6: bool,
    saved: ImagesAndKernel,
    gradient: Float[Array, "n h2 w2 c"],
) -> ImagesAndKernel:
    options = Options(stride, padding, of_relu6)
    return lax.platform_dependent(
        *saved,
        gradient,
        cpu=functools.partial(_gradients_on_cpu, options=options),
        default=functools.partial(_gradients_of_grouped_conv, options=options),
    )


depthwise_conv.defvjp(_forward, _backward)


def _grouped_conv(
    images: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], options: Options
) -> Float[Array, "n h2 w2 c"]:
    images = relu6(images) if options.of_relu6 else images
    return conv(images, kernel, options.stride, options.padding, groups=images.shape[-1])


def _gradients_of_grouped_conv(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    gradient: Float[Array, "n h2 w2 c"],
    options: Options,
) -> ImagesAndKernel:
    convolve = functools.partial(_grouped_conv, options=options)
    return jax.vjp(convolve, images, kernel)[1](gradient)


def _shifted_products(
    images: Float[Array, "n h w c"], kernel: Float[Array, "k k 1 c"], options: Options
) -> Float[Array, "n h2 w2 c"]:
    taps = kernel[:, :, 0].astype(accumulator(images.dtype))
    padded = _pad(relu6(images) if options.of_relu6 else images, options.padding)
    windows = _windows(padded, len(kernel), options.stride)
    out: Any = sum(window * taps[i, j] for i, j, window in windows)
    return out.astype(images.dtype)


def _gradients_on_cpu(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    gradient: Float[Array, "n h2 w2 c"],
    options: Options,
) -> ImagesAndKernel:
    dilated = _dilate(gradient, images, len(kernel), options)
    if options.stride == 1:
        # Both gradients read this tensor. Without the barrier XLA would compute it twice, which
        # costs 2 % of a step.
        dilated = lax.optimization_barrier(dilated)
    turned = kernel[::-1, ::-1, 0].astype(accumulator(images.dtype))
    windows = _windows(dilated, len(kernel), 1)
    image_gradient: Any = sum(window * turned[i, j] for i, j, window in windows)
    if options.of_relu6:
        image_gradient = jnp.where((images > 0) & (images < 6), image_gradient, 0)
    return (
        image_gradient.astype(images.dtype),
        _kernel_gradient(images, kernel, gradient, dilated, options),
    )


def _dilate(
    gradient: Float[Array, "n h2 w2 c"],
    images: Float[Array, "n h w c"],
    kernel_size: int,
    options: Options,
) -> Float[Array, "n h3 w3 c"]:
    """Returns the gradient with zeros between and around its pixels: h3 = h+k-1, w3 = w+k-1.

    The gradient for the images is the correlation of the result with the kernel turned by 180
    degrees.
    """

    def zeros(length: int, outputs: int, before_image: int) -> tuple[int, int, int]:
        covered = options.stride * (outputs - 1) + 1
        before = kernel_size - 1 - before_image
        return before, length + kernel_size - 1 - covered - before, options.stride - 1

    (above, _), (left, _) = options.padding
    rows = zeros(images.shape[1], gradient.shape[1], above)
    columns = zeros(images.shape[2], gradient.shape[2], left)
    nothing = jnp.zeros((), gradient.dtype)
    return lax.pad(gradient, nothing, ((0, 0, 0), rows, columns, (0, 0, 0)))


def _kernel_gradient(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k 1 c"],
    gradient: Float[Array, "n h2 w2 c"],
    dilated: Float[Array, "n h3 w3 c"],
    options: Options,
) -> Float[Array, "k k 1 c"]:
    size, dtype = len(kernel), accumulator(images.dtype)

    def add_chunk(
        sums: list[Array], images_and_gradient: tuple[Array, Array]
    ) -> tuple[list[Array], None]:
        chunk, gradient_chunk = images_and_gradient
        chunk = relu6(chunk) if options.of_relu6 else chunk
        if options.stride == 1:
            # Windows of the dilated gradient slide over the image, which needs no padded copy.
            windows = _windows(gradient_chunk, size, 1)
            pairs = [(chunk, window) for _, _, window in windows][::-1]
        else:
            windows = _windows(_pad(chunk, options.padding), size, options.stride)
            pairs = [(window, gradient_chunk) for _, _, window in windows]
        products = (a.astype(dtype) * b for a, b in pairs)
        return [total + _add_rows(x) for total, x in zip(sums, products, strict=True)], None

    count = _images_per_chunk(images)
    chunks = _chunks(images, count), _chunks(dilated if options.stride == 1 else gradient, count)
    summed = images if options.stride == 1 else gradient
    zeros = jnp.zeros_like(_add_rows(summed[:count].astype(dtype)))
    sums, _ = lax.scan(add_chunk, [zeros] * size**2, chunks)
    total = jnp.stack([jnp.sum(x, (0, 1, 2)) for x in sums])
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _add_rows(products: Float[Array, "n h w c"]) -> Float[Array, "n h_over_m w c"]:
    """Adds groups of m rows, with m the largest divisor of h that is at most ROWS_PER_SUM."""
    height = products.shape[1]
    m = max(m for m in range(1, ROWS_PER_SUM + 1) if height % m == 0)
    rows = height // m
    return functools.reduce(jnp.add, (products[:, i * rows : (i + 1) * rows] for i in range(m)))


def _images_per_chunk(images: Float[Array, "n h w c"]) -> int:
    """Returns the largest divisor of the batch whose images fill at most CACHED_BYTES, or 1."""
    batch = images.shape[0]
    fitting = CACHED_BYTES * batch // images.nbytes
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fitting), default=1)


def _chunks(images: Float[Array, "n h w c"], count: int) -> Float[Array, "chunks count h w c"]:
    return images.reshape(-1, count, *images.shape[1:])


def _pad(images: Float[Array, "n h w c"], padding: Padding) -> Float[Array, "n h3 w3 c"]:
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def _windows(
    padded: Float[Array, "n h3 w3 c"], size: int, stride: int
) -> Iterator[tuple[int, int, Float[Array, "n h2 w2 c"]]]:
    """Yields (i, j, the pixels that tap (i, j) of a size x size filter reads) for every tap."""
    height, width = padded.shape[1:3]
    for i in range(size):
        for j in range(size):
            # One past the last row and column that tap (i, j) reads, for the last output.
            bottom, right = i + height - size + 1, j + width - size + 1
            yield i, j, padded[:, i:bottom:stride, j:right:stride]
