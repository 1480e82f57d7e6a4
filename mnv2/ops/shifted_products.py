"""Depthwise convolution as sums of shifted products, for platforms that XLA has no good kernel for.

Tap (i, j) of the filter multiplies the window of the padded images that starts at row i, column j.
The result is the sum over the taps. XLA fuses all products into one pass over the images. The
gradient for the images is the same operation, with the filter turned by 180 degrees.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.arrays import Convolved, Images, Kernel
from mnv2.ops.padding import Padding
from mnv2.ops.precision import accumulator
from mnv2.ops.relu6 import before_relu6, relu6

# Bytes of images per chunk of the scan in `kernel_gradient`. A chunk must be small enough for the
# L2 cache of a core, together with its padded copy and its gradients, and large enough to hide the
# overhead of an iteration.
CACHED_BYTES = 128 * 1024

# At most this many rows of an image are added in one pass of the kernel's gradient, before the
# scan adds the sums of chunks. At 224 pixels 4 and 8 are equally fast; 64 costs 15 % of a training
# step.
ROWS_PER_SUM = 8


class DepthwiseOptions(NamedTuple):
    """The settings of one depthwise convolution, as `depthwise.depthwise_conv` takes them."""

    stride: int
    padding: Padding
    of_relu6: bool


def convolve(images: Images, kernel: Kernel, options: DepthwiseOptions) -> Convolved:
    """Returns the depthwise convolution of the images."""
    taps = kernel[:, :, 0].astype(accumulator(images.dtype))
    padded = _pad(relu6(images) if options.of_relu6 else images, options.padding)
    windows = _windows(padded, len(kernel), options.stride)
    out: Any = sum(window * taps[i, j] for i, j, window in windows)
    return out.astype(images.dtype)


def image_gradient(
    images: Images, kernel: Kernel, dilated: Float[Array, "n h3 w3 c"], options: DepthwiseOptions
) -> Images:
    """Returns the gradient for the images, given the dilated gradient for the result."""
    turned = kernel[::-1, ::-1, 0].astype(accumulator(images.dtype))
    windows = _windows(dilated, len(kernel), 1)
    gradient: Any = sum(window * turned[i, j] for i, j, window in windows)
    if options.of_relu6:
        gradient = before_relu6(gradient, images)
    return gradient.astype(images.dtype)


def dilate(
    gradient: Convolved, images: Images, kernel_size: int, options: DepthwiseOptions
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


def kernel_gradient(
    images: Images,
    kernel: Kernel,
    gradient: Convolved,
    dilated: Float[Array, "n h3 w3 c"],
    options: DepthwiseOptions,
) -> Kernel:
    """Returns the gradient for the kernel, by a scan over chunks of images: see `depthwise`."""
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


def _add_rows(products: Images) -> Float[Array, "n h_over_m w c"]:
    """Adds groups of m rows, with m the largest divisor of h that is at most ROWS_PER_SUM."""
    height = products.shape[1]
    m = max(m for m in range(1, ROWS_PER_SUM + 1) if height % m == 0)
    rows = height // m
    return functools.reduce(jnp.add, (products[:, i * rows : (i + 1) * rows] for i in range(m)))


def _images_per_chunk(images: Images) -> int:
    """Returns the largest divisor of the batch whose images fill at most CACHED_BYTES, or 1."""
    batch = images.shape[0]
    fitting = CACHED_BYTES * batch // images.nbytes
    return max((n for n in range(1, batch + 1) if batch % n == 0 and n <= fitting), default=1)


def _chunks(images: Images, count: int) -> Float[Array, "chunks count h w c"]:
    return images.reshape(-1, count, *images.shape[1:])


def _pad(images: Images, padding: Padding) -> Float[Array, "n h3 w3 c"]:
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def _windows(
    padded: Float[Array, "n h3 w3 c"], size: int, stride: int
) -> Iterator[tuple[int, int, Convolved]]:
    """Yields (i, j, the pixels that tap (i, j) of a size x size filter reads) for every tap."""
    height, width = padded.shape[1:3]
    for i in range(size):
        for j in range(size):
            # One past the last row and column that tap (i, j) reads, for the last output.
            bottom, right = i + height - size + 1, j + width - size + 1
            yield i, j, padded[:, i:bottom:stride, j:right:stride]
