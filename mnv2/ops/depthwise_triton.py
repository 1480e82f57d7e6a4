"""Depthwise convolution on NVIDIA GPUs as two kernels, written in Pallas for its Triton backend.

XLA's fusions of `shifted_products` need more instructions than their bytes take time: for each tap
they compute an index, test the bounds, load the weight and apply ReLU6 again. Here a program takes
one image, some columns and some channels, and walks down the rows. A row is loaded once for each
column of the filter (all but the first time from the cache), clipped once, and stays in registers
for as long as the filter covers it. The taps are in registers too.

The backward pass computes both gradients in one walk. Let an image's row be s a + p - top, with the
stride s and p < s. Tap i of the filter meets it, for both gradients, in row a - i // s of the
result's gradient, and only if i % s = p; columns likewise. So each row of the gradient is loaded
once too, and with stride 2 only the products that are not zero are computed.

The gradient for the kernel is summed over a walk in registers, and so are the sums that batch norm
needs of the result. XLA adds the sums of the programs, in a fixed order: the bits are always the
same.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt
from jaxtyping import Array, Float

from mnv2.ops.arrays import Convolved, Images, ImagesAndKernel, Kernel
from mnv2.ops.batch_norm import Sums
from mnv2.ops.precision import accumulator
from mnv2.ops.shifted_products import DepthwiseOptions

# Columns and channels of a program: powers of two, as Triton wants. The first ones load the fewest
# pixels twice.
TILES = ((16, 32), (16, 16), (8, 64), (8, 32), (8, 16), (4, 128), (4, 64), (4, 32))
PER_WARP = 128  # values: four for each thread

# What batch norm's gradient needs: the input of batch norm, the vectors by which it is x * factor +
# shift, and its gradient factor * g + slope * x + offset, and whether ReLU6 follows.
Norm = tuple[Convolved, Float[Array, "4 c"], bool]


def convolve(
    images: Images,
    kernel: Kernel,
    options: DepthwiseOptions,
    sums: bool = False,
    interpret: bool = False,
) -> tuple[Convolved, Sums | None]:
    """Returns the depthwise convolution of the images; on a CPU only with `interpret`.

    Also the sums of the result that batch norm needs, if `sums`.
    """
    size, (n, _, _, c) = len(kernel), images.shape
    height, width = (
        (length + sum(padding) - size) // options.stride + 1
        for length, padding in zip(images.shape[1:3], options.padding, strict=True)
    )
    tile = _tile(width, c)
    out = [jax.ShapeDtypeStruct((n, height, width, c), images.dtype)]
    if sums:
        of_programs = (n * pl.cdiv(width, tile[0]), 2, c)
        out.append(jax.ShapeDtypeStruct(of_programs, accumulator(images.dtype)))
    body = functools.partial(_convolve, options=options, tile=tile)
    call = _call(body, "depthwise", (n, width, c), tile, out, interpret)
    result, *parts = call(images, _taps(kernel))
    return result, tuple(parts[0].sum(0)) if parts else None


def gradients(
    images: Images,
    kernel: Kernel,
    gradient: Convolved,
    options: DepthwiseOptions,
    norm: Norm | None = None,
    interpret: bool = False,
) -> ImagesAndKernel:
    """Returns the gradients for the images and for the kernel; on a CPU only with `interpret`.

    `gradient` is that for the result, or that for the result of `norm` behind it.
    """
    size, (n, _, width, c) = len(kernel), images.shape
    left = options.padding[1][0]
    columns = -(-(width + left) // options.stride) - left // options.stride
    tile = _tile(columns, c)
    sums = jax.ShapeDtypeStruct(
        (n * pl.cdiv(columns, tile[0]), size * size, c), accumulator(images.dtype)
    )
    out = jax.ShapeDtypeStruct(images.shape, images.dtype), sums
    *inputs, then_relu6 = norm or (False,)
    body = functools.partial(_gradients, options=options, tile=tile, then_relu6=then_relu6)
    name = "depthwise_norm_gradients" if norm else "depthwise_gradients"
    call = _call(body, name, (n, columns, c), tile, out, interpret)
    for_images, parts = call(images, gradient, _taps(kernel), *inputs)
    return for_images, parts.sum(0).reshape(kernel.shape).astype(kernel.dtype)


def compile_small() -> None:
    """Compiles both kernels for a small image on this GPU. Raises what JAX raises if that fails."""
    options = DepthwiseOptions(2, ((0, 1), (0, 1)), of_relu6=True)
    shapes = (1, 8, 8, 32), (3, 3, 1, 32), (1, 4, 4, 32)
    inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]

    def both(image: Array, kernel: Array, gradient: Array) -> Any:
        norm = gradient, jnp.ones((4, 32), jnp.float32), True
        through = gradients(image, kernel, gradient, options, norm)
        return convolve(image, kernel, options, sums=True), through

    jax.jit(both).lower(*inputs).compile()


def _tile(columns: int, channels: int) -> tuple[int, int]:
    """Returns the columns and channels of a program with which the fewest threads are idle."""

    def computed(tile: tuple[int, int]) -> int:
        return pl.cdiv(columns, tile[0]) * pl.cdiv(channels, tile[1]) * tile[0] * tile[1]

    return min(TILES, key=computed)


def _taps(kernel: Kernel) -> Float[Array, "k k c"]:
    return kernel[:, :, 0].astype(accumulator(kernel.dtype))


def _call(
    body: Callable[..., None],
    name: str,
    extent: tuple[int, int, int],
    tile: tuple[int, int],
    out: Any,
    interpret: bool,
) -> Callable[..., Any]:
    """Returns a kernel: a program for each image and block of columns, and block of channels."""
    images, columns, channels = extent
    blocks = pl.cdiv(columns, tile[0])
    return pl.pallas_call(
        functools.partial(body, blocks=blocks, interpret=interpret),
        grid=(images * blocks, pl.cdiv(channels, tile[1])),
        out_shape=out,
        compiler_params=plt.CompilerParams(num_warps=tile[0] * tile[1] // PER_WARP, num_stages=2),
        interpret=interpret,
        name=name,
    )


def _convolve(
    x_ref: Any, k_ref: Any, y_ref: Any, sums_ref: Any = None,
    *, options: DepthwiseOptions, tile: tuple[int, int], blocks: int, interpret: bool
) -> None:  # fmt: skip
    """Walks down the rows of the result; the filter covers rows s r - top and the next ones."""
    size, stride, ((top, _), (left, _)) = k_ref.shape[0], options.stride, options.padding
    n, columns, c = _program(blocks, tile)
    k = _load_taps(k_ref, c)
    fma = _fma if k_ref.dtype == jnp.float32 and not interpret else _product

    def row(r: Any) -> list[Array]:
        found = (
            _load(x_ref, n, r, stride * columns + j - left, c, k_ref.dtype) for j in range(size)
        )
        return [jnp.clip(x, 0, 6) if options.of_relu6 else x for x in found]

    def step(r: Any, carry: tuple[list[list[Array]], list[Array]]) -> Any:
        first, (above, sums) = stride * r - top, carry
        rows = above + [row(first + i) for i in range(len(above), size)]
        y = jnp.zeros(tile, k_ref.dtype)
        for i, j in itertools.product(range(size), repeat=2):
            y = fma(rows[i][j], k[i][j], y)
        _store(y_ref, n, r, columns, c, y)
        if sums:
            y = jnp.where((columns < y_ref.shape[2])[:, None], y, 0)
            sums = [sums[0] + y, fma(y, y, sums[1])]
        return rows[stride:], sums

    above = [row(i - top) for i in range(size - stride)]
    zeros = [] if sums_ref is None else [jnp.zeros(tile, k_ref.dtype)] * 2
    _, sums = jax.lax.fori_loop(0, y_ref.shape[1], step, (above, zeros))
    _store_sums(sums_ref, c, sums)


def _gradients(
    x_ref: Any, g_ref: Any, k_ref: Any, *refs: Any,
    options: DepthwiseOptions, tile: tuple[int, int], then_relu6: bool,
    blocks: int, interpret: bool
) -> None:  # fmt: skip
    """Walks down the rows of the image, `stride` at a time: see the module."""
    *norm, gx_ref, gk_ref = refs
    size, stride, ((top, _), (left, _)) = k_ref.shape[0], options.stride, options.padding
    n, columns, c = _program(blocks, tile)
    columns = columns + left // stride
    k = _load_taps(k_ref, c)
    fma = _fma if k_ref.dtype == jnp.float32 and not interpret else _product
    reach = (size - 1) // stride + 1  # rows and columns of the gradient that a pixel meets

    vectors = [_load_vector(norm[1], c, i) for i in range(4)] if norm else []

    def row(a: Any) -> list[Array]:
        found = [_load(g_ref, n, a, columns - j, c, k_ref.dtype) for j in range(reach)]
        for j, g in enumerate(found if norm else ()):
            y = _load(norm[0], n, a, columns - j, c, k_ref.dtype)
            g = _through_norm(g, y, vectors, then_relu6, fma)
            found[j] = jnp.where(_at(g_ref, n, a, columns - j, c)[1], g, 0)
        return found

    def step(a: Any, carry: tuple[list[list[Array]], list[Array]]) -> Any:
        rows, sums = [row(a), *carry[0]], list(carry[1])
        for p, q in itertools.product(range(stride), repeat=2):
            r, v = stride * a + p - top, stride * columns + q - left
            x = _load(x_ref, n, r, v, c, k_ref.dtype)
            clipped = jnp.clip(x, 0, 6) if options.of_relu6 else x
            gx = jnp.zeros(tile, k_ref.dtype)
            for i, j in itertools.product(range(p, size, stride), range(q, size, stride)):
                g = rows[i // stride][j // stride]
                gx = fma(g, k[i][j], gx)
                sums[i * size + j] = fma(clipped, g, sums[i * size + j])
            if options.of_relu6:
                gx = jnp.where((x > 0) & (x < 6), gx, 0)
            _store(gx_ref, n, r, v, c, gx)
        return rows[:-1], sums

    begin, end = top // stride, -(-(x_ref.shape[1] + top) // stride)
    zeros = [jnp.zeros(tile, k_ref.dtype)] * size**2
    above = [row(begin - i) for i in range(1, reach)]
    _, sums = jax.lax.fori_loop(begin, end, step, (above, zeros))
    _store_sums(gk_ref, c, sums)


def _through_norm(
    g: Array, y: Array, vectors: list[Array], then_relu6: bool, fma: Callable[..., Array]
) -> Array:
    """Returns the gradient for y, given that for the result of batch norm, of some pixels."""
    factor, shift, slope, offset = vectors
    if then_relu6:
        normalized = fma(y, factor, shift)
        g = jnp.where((normalized > 0) & (normalized < 6), g, 0)
    return fma(g, factor, fma(y, slope, offset))


def _program(blocks: int, tile: tuple[int, int]) -> tuple[Any, Array, Array]:
    """Returns the image of this program, its columns and its channels."""
    image, block = pl.program_id(0) // blocks, pl.program_id(0) % blocks
    columns = block * tile[0] + jnp.arange(tile[0])
    return image, columns, pl.program_id(1) * tile[1] + jnp.arange(tile[1])


def _load_taps(k_ref: Any, c: Array) -> list[list[Array]]:
    size = k_ref.shape[0]
    return [[_load_vector(k_ref, c, i, j) for j in range(size)] for i in range(size)]


def _load_vector(ref: Any, c: Array, *row: int) -> Array:
    return plt.load(ref.at[(*row, c)], mask=c < ref.shape[-1], other=0.0)[None]


def _load(ref: Any, n: Any, row: Any, columns: Array, c: Array, dtype: Any) -> Array:
    """Returns pixels of a row, and zeros outside of the image."""
    at, mask = _at(ref, n, row, columns, c)
    return plt.load(at, mask=mask, other=0.0).astype(dtype)


def _store(ref: Any, n: Any, row: Any, columns: Array, c: Array, values: Array) -> None:
    at, mask = _at(ref, n, row, columns, c)
    plt.store(at, values.astype(ref.dtype), mask=mask)


def _store_sums(ref: Any, c: Array, sums: list[Array]) -> None:
    """Stores the sums of this program over its columns."""
    for i, total in enumerate(sums):
        plt.store(ref.at[pl.program_id(0), i, c], total.sum(0), mask=c < ref.shape[-1])


def _at(ref: Any, n: Any, row: Any, columns: Array, c: Array) -> tuple[Any, Array]:
    """Returns pixels of a row, and which of them are inside of the image."""
    height, width, channels = ref.shape[1:]
    inside = (row >= 0) & (row < height) & (columns >= 0) & (columns < width)
    # Negative indices would count from the end where the kernel is interpreted.
    row, columns = (
        jnp.where(i < 0, jnp.int32(length), i) for i, length in ((row, height), (columns, width))
    )
    return ref.at[n, row, columns[:, None], c[None]], inside[:, None] & (c < channels)[None]


def _product(a: Array, b: Array, c: Array) -> Array:
    return a * b + c


def _fma(a: Array, b: Array, c: Array) -> Array:
    """Returns a * b + c by one instruction, for which XLA's Triton would use two."""
    a, b, c = jnp.broadcast_arrays(a, b, c)
    (result,) = plt.elementwise_inline_asm(
        "fma.rn.f32 $0,$1,$2,$3;",
        args=[a, b, c],
        constraints="=f,f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(a.shape, jnp.float32)],
    )
    return result
