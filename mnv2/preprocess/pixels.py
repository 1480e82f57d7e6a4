"""The arithmetic of operations on pictures, as Pillow and therefore torchvision compute it.

A function takes one picture and is to be used under `each`. Of the operations that published
recipes choose from, each is one of four parts: a table of the 256 values, a warp, a blend with
gray, or a blend with the smoothed picture. What depends only on an operation's strength is computed
in NumPy, in double precision as in Pillow, while JAX traces; the device has 32 bits.

All of them equal Pillow's to the last grey level but bilinear warps, see `warp`. Gray pictures have
one channel; then `color` changes nothing. Pictures have at most 4,096 pixels on a side.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int16, Int32, Shaped, UInt8

from mnv2.ops.platforms import platform_dependent
from mnv2.preprocess import products

VALUES = np.arange(256, dtype=np.int32)
_LARGE = 64 * 64  # pixels, by the estimates of XLA's compiler for a v5e
_LUMINANCE = np.array((19595, 38470, 7471), np.int32)  # of 65536: ITU-R 601

type Number = float | Float[Array, ""]
type Six = tuple[float, ...]


def each(
    change: Callable[..., Array], *arrays: Shaped[Array, "b *_"], selects: bool = False
) -> Shaped[Array, "b *_changed"]:
    """Returns what a function makes of each entry of a batch of pictures, and of other arrays.

    On CPUs one after another, so that of a choice (`lax.switch`) only what was chosen is computed;
    elsewhere all together, where everything is computed and then selected. On TPUs, too, large
    pictures go one after another through a function that `selects` among costly choices.
    """

    def one_by_one(*batch: Array) -> Array:
        return lax.map(lambda one: change(*one), batch)

    together = jax.vmap(change)
    large = math.prod(arrays[0].shape[1:3]) >= _LARGE
    return platform_dependent(
        *arrays,
        cpu=one_by_one,
        tpu=one_by_one if selects and large else together,
        default=together,
    )


def blend(low: Any, high: Any, factor: Number) -> UInt8[Array, "..."]:
    """Goes from `low` (factor 0) through `high` (1) and on; cuts fractions off. Pillow's blend."""
    start = jnp.asarray(low, jnp.float32)
    product = jnp.float32(factor) * (jnp.asarray(high, jnp.float32) - start)
    # The limit changes nothing. It keeps compilers from a fused product and sum, which rounds once.
    mixed = start + jnp.maximum(product, -65536)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def gray(image: UInt8[Array, "h w c"]) -> UInt8[Array, "h w 1"]:
    """Returns the luminance of a picture. Pillow's convert("L")."""
    if image.shape[-1] == 1:
        return image
    weighted = (image.astype(jnp.int32) * _LUMINANCE).sum(-1, keepdims=True)
    return ((weighted + (1 << 15)) >> 16).astype(jnp.uint8)


def color(image: UInt8[Array, "h w c"], factor: Number) -> UInt8[Array, "h w c"]:
    """Changes the saturation: 0 is gray, 1 the picture itself. Pillow's ImageEnhance.Color."""
    return image if image.shape[-1] == 1 else blend(gray(image), image, factor)


def sharpness(image: UInt8[Array, "h w c"], factor: Number) -> UInt8[Array, "h w c"]:
    """Changes the distance to a blurred picture: 0 is blurred. Pillow's ImageEnhance.Sharpness.

    The border of one pixel stays, as does a picture that is nothing but border.
    """
    if min(image.shape[:2]) < 3:
        return image
    pixels = image.astype(jnp.int32)
    rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = pixels[1:-1, 1:-1]
    smooth = (2 * (around + 4 * inner) + 13) // 26  # a weight of 5 of 13, rounded
    return platform_dependent(
        image,
        blend(smooth, inner, factor),
        cpu=lambda image, inner: image.at[1:-1, 1:-1].set(inner),
        default=_with_border,
    )


def _with_border(
    image: UInt8[Array, "h w c"], inner: UInt8[Array, "h-2 w-2 c"]
) -> UInt8[Array, "h w c"]:
    """Returns `inner` with the picture's border. In one kernel with what computes `inner`."""
    rows, columns = ((jnp.arange(n) > 0) & (jnp.arange(n) < n - 1) for n in image.shape[:2])
    padded = jnp.pad(inner, ((1, 1), (1, 1), (0, 0)))
    return jnp.where((rows[:, None] & columns)[..., None], padded, image)


def look_up(image: UInt8[Array, "h w c"], table: UInt8[Array, "c 256"]) -> UInt8[Array, "h w c"]:
    """Returns for each value of a channel what the channel's table has for it."""
    return platform_dependent(image, table, tpu=products.look_up, default=_plain_look_up)


def _plain_look_up(
    image: UInt8[Array, "h w c"], table: UInt8[Array, "c 256"]
) -> UInt8[Array, "h w c"]:
    places = image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1])
    return table.reshape(-1).at[places].get(mode="promise_in_bounds")


def brightness_table(factor: float) -> UInt8[np.ndarray, "256"]:
    """Multiplies: 0 is black, 1 the picture itself. Pillow's ImageEnhance.Brightness."""
    return np.clip(np.float32(factor) * VALUES.astype(np.float32), 0, 255).astype(np.uint8)


def posterize_table(bits: float) -> UInt8[np.ndarray, "256"]:
    """Keeps the upper `bits` bits, 0 to 8. Pillow's ImageOps.posterize."""
    return (VALUES & (0xFF << (8 - int(bits)))).astype(np.uint8)


def solarize_table(threshold: float) -> UInt8[np.ndarray, "256"]:
    """Inverts the values from `threshold` on; all of them for 0. Pillow's ImageOps.solarize."""
    return np.where(threshold > VALUES, VALUES, 255 - VALUES).astype(np.uint8)


def contrast_table(image: UInt8[Array, "h w c"], factor: Number) -> UInt8[Array, "c 256"]:
    """Changes the distance to the mean luminance: 0 is plain. Pillow's ImageEnhance.Contrast."""
    count = image.shape[0] * image.shape[1]
    mean = (gray(image).sum(dtype=jnp.int32) + count // 2) // count  # rounded
    return jnp.tile(blend(mean, VALUES, factor), (image.shape[-1], 1))


def autocontrast_table(image: UInt8[Array, "h w c"]) -> UInt8[Array, "c 256"]:
    """Stretches each channel to 0 ... 255; one of a single value stays. ImageOps.autocontrast."""
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    stretched = 255 * (VALUES - low) // jnp.maximum(high - low, 1)
    places, values = map(jnp.asarray, _stretched_lower())
    lower = (values[places[low, high]] == VALUES[:, None]).any(-1)
    table = jnp.clip(stretched - lower, 0, 255)
    return jnp.where(high > low, table, VALUES).astype(jnp.uint8)


@functools.cache
def _stretched_lower() -> tuple[Int16[np.ndarray, "256 256"], Int16[np.ndarray, "n 17"]]:
    """Returns for low and high the number of a row, and rows of values, -1 for none.

    At these values autocontrast is one below the quotient: 255 (value - low) / (high - low) is
    whole, and Pillow's double precision is below it before it cuts the fraction off. They are
    12,094 of 2.8 million, at most 17 for the same low and high.
    """
    places, rows = np.zeros((256, 256), np.int16), [np.full(17, -1, np.int16)]
    value = np.arange(256)
    for low, high in itertools.combinations(range(256), 2):
        scale = 255.0 / (high - low)
        cut = np.trunc(value * scale + -low * scale)
        below = (cut < 255 * (value - low) // (high - low)) & (low < value) & (value <= high)
        if below.any():
            places[low, high] = len(rows)
            found = np.flatnonzero(below)
            rows.append(np.pad(found, (0, 17 - len(found)), constant_values=-1).astype(np.int16))
    return places, np.stack(rows)


def equalize_table(
    image: UInt8[Array, "h w c"], wanted: Bool[Array, ""] | bool = True
) -> UInt8[Array, "c 256"]:
    """Makes each value of a channel about as frequent as any other. Pillow's ImageOps.equalize.

    Where it is not wanted, the table may be any.
    """
    counts = platform_dependent(
        image,
        jnp.asarray(wanted),
        cpu=lambda image, wanted: scattered_counts(image),
        cuda=scattered_counts,
        default=lambda image, wanted: counts_of(image),
    )
    last = jnp.max(jnp.where(counts > 0, VALUES, 0), axis=1, keepdims=True)
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, last, 1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts + step // 2
    table = jnp.minimum(below // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table, VALUES).astype(jnp.uint8)


def counts_of(image: UInt8[Array, "h w c"]) -> Int32[Array, "c 256"]:
    """Returns how often each channel has each value: a product instead of a scatter.

    The upper and the lower four bits of the n values, as 16 zeros and ones each, are matrices: 16 x
    n times n x 16 counts, exactly. It costs 512 operations and up to 64 bytes per value, which a
    TPU's matrix units have. An H100's memory would need 0.75 ms for 256 pictures of 224 px. On one
    CPU thread it takes 0.25 ms for a channel of 224 px, and `scattered_counts` 0.06.
    """
    values = image.reshape(-1, image.shape[-1]).T
    halves = (values >> 4, values & 15)
    upper, lower = (
        (half[:, None] == VALUES[:16, None].astype(np.uint8)).astype(jnp.bfloat16)
        for half in halves
    )
    counts = jnp.einsum("cin,cjn->cij", upper, lower, preferred_element_type=jnp.float32)
    return counts.reshape(-1, 256).astype(jnp.int32)


def scattered_counts(
    image: UInt8[Array, "h w c"], wanted: Bool[Array, ""] | None = None
) -> Int32[Array, "c 256"]:
    """Returns what `counts_of` does, one value after another; zeros where it is not wanted.

    A GPU adds only what is wanted, of policies' pictures one of 14, and passes over the rest: at
    least 0.05 ms for 256 pictures of 224 px on an H100, by the instructions of the program.
    """
    channels = image.shape[-1]
    places = image.astype(jnp.int32) + 256 * jnp.arange(channels)
    if wanted is not None:
        places = jnp.where(wanted, places, 256 * channels)  # which is nowhere
    counts = jnp.zeros(256 * channels, jnp.int32)
    mode = "promise_in_bounds" if wanted is None else "drop"
    counts = counts.at[places.reshape(-1)].add(1, mode=mode)
    return counts.reshape(channels, 256)


def shear_x(level: float) -> Six:
    """Moves each row to the left by `level` times its distance from the top."""
    return (1, level, 0, 0, 1, 0)


def shear_y(level: float) -> Six:
    """Moves each column up by `level` times its distance from the left."""
    return (1, 0, 0, level, 1, 0)


def translate(right: float, down: float) -> Six:
    """Moves the picture by whole pixels; fractions are cut off."""
    return (1, 0, -math.trunc(right), 0, 1, -math.trunc(down))


def rotate(degrees: float, height: int, width: int) -> Six:
    """Turns the picture counterclockwise about its centre. Pillow's Image.rotate."""
    angle = -math.radians(degrees)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    right, down = cosine * -x + sine * -y + x, -sine * -x + cosine * -y + y
    return (cosine, sine, right, -sine, cosine, down)


def warp_numbers(six: Six, interpolation: str) -> Int32[np.ndarray, "*parts 2 3"]:
    """Returns the six numbers of a transform as `warp` wants them: for x, and for y.

    The pixel of the result with centre (x, y) shows the place (ax + by + c, dx + ey + f). For
    `nearest` they have 16 binary digits and are for corners, as in Pillow's affine_fixed. For
    `bilinear` they have 34, of which the last 16 are apart, and are for odd x and y of twice the
    centres; a shear is exact then.
    """
    three = np.asarray(six, np.float64).reshape(2, 3)
    if interpolation == "bilinear":
        digits = np.rint(three * (0.5, 0.5, 1) * 2.0**34).astype(np.int64)
        return np.stack((digits >> 16, digits & 0xFFFF)).astype(np.int32)
    half = three[:, 2] + three[:, 0] * 0.5 + three[:, 1] * 0.5
    return np.floor(np.stack((three[:, 0], three[:, 1], half), 1) * 65536 + 0.5).astype(np.int32)


def warp(
    image: UInt8[Array, "h w c"],
    numbers: Int32[Array, "*parts 2 3"],
    interpolation: str,
    fill: int,
) -> UInt8[Array, "h w c"]:
    """Transforms a picture as `warp_numbers` say; what is outside of it gets the value `fill`.

    A bilinear value is cut, not rounded. Shears and shifts equal Pillow's. Turns have 32 bits and
    Pillow's 64: at most 0.005 % of the values of photographs are one level off.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    if interpolation == "nearest":
        column, row = ((a * x + b * y + c) >> 16 for a, b, c in numbers)
        (found,) = _pixels(image, row, column, 1)
    else:
        across, down = (_place(2 * x + 1, 2 * y + 1, numbers[:, axis]) for axis in (0, 1))
        column, row = across[0] >> 18, down[0] >> 18
        found = _bilinear(image, down, across)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], found, jnp.uint8(fill))


def _pixels(
    image: UInt8[Array, "h w c"], row: Int[Array, "h w"], column: Int[Array, "h w"], reach: int
) -> tuple[UInt8[Array, "h w c"], ...]:
    """Looks pixels up; rows and columns outside are those of the edge.

    With a `reach` of 2, also those to the right, below, and below that.
    """

    def plain(image: Array, row: Array, column: Array) -> tuple[Array, ...]:
        return tuple(
            _plain_pixels(image, row + i, column + j) for i in range(reach) for j in range(reach)
        )

    def product(image: Array, row: Array, column: Array) -> tuple[Array, ...]:
        return products.four_pixels(image, row, column)[: reach * reach]

    return platform_dependent(image, row, column, tpu=product, default=plain)


def _plain_pixels(
    image: UInt8[Array, "h w c"], row: Int[Array, "h w"], column: Int[Array, "h w"]
) -> UInt8[Array, "h w c"]:
    height, width, channels = image.shape
    places = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
    return image.reshape(-1, channels).at[places].get(mode="promise_in_bounds")


def _place(x: Array, y: Array, parts: Int32[Array, "2 3"]) -> tuple[Array, Array]:
    """Returns coordinates with 18 binary digits, and the 16 digits after them."""
    high, low = (a * x + b * y + c for a, b, c in parts)
    return high + (low >> 16), low & 0xFFFF


def _bilinear(
    image: UInt8[Array, "h w c"], down: tuple[Array, Array], across: tuple[Array, Array]
) -> UInt8[Array, "h w c"]:
    """Mixes four pixels; exactly between two, that is where a coordinate is a pixel's centre."""
    row, column = ((high - (1 << 17)) >> 18 for high, _ in (down, across))
    lower, right = (((high - (1 << 17)) & 0x3FFFF)[..., None] for high, _ in (down, across))
    here, beside, below, beyond = (x.astype(jnp.int32) for x in _pixels(image, row, column, 2))
    rest = down[1][..., None] * (below - here) + across[1][..., None] * (beside - here)
    mixed = (here << 18) + lower * (below - here) + right * (beside - here) + (rest >> 16)
    both = lower.astype(jnp.float32) * right * (here - beside - below + beyond) / (1 << 18)
    return ((mixed + jnp.floor(both).astype(jnp.int32)) >> 18).astype(jnp.uint8)
