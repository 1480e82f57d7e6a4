"""The arithmetic of operations on pictures, as Pillow and therefore torchvision compute it.

A function takes one picture, of at most 4,096 pixels on a side, and is to be used under `each`.
An operation is a table of the 256 values, a warp, a blend with gray, or a blend with the smoothed
picture. What depends only on its strength is computed in NumPy, in double precision as in Pillow,
while JAX traces. All equal Pillow's to the last grey level but bilinear warps, see `warp`.

A TPU is slow at gathers: there values and pixels are looked up with products of matrices. These are
of whole numbers of at most eight bits, which its matrix units multiply exactly, and sums of at most
16 bits.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Int16, Int32, Key, Shaped, UInt8

from mnv2.ops.platforms import platform_dependent

VALUES = np.arange(256, dtype=np.int32)
_LARGE = 64 * 64  # pixels, by the estimates of XLA's compiler for a v5e
_TILE = 56  # largest side of a tile of `_tiled`: it shows less than 128 rows and columns
_LUMINANCE = np.array((19595, 38470, 7471), np.int32)  # of 65536: ITU-R 601

type Picture = UInt8[Array, "h w c"]
type Pictures = UInt8[Array, "b h w c"]
type Keys = Key[Array, "b"]  # one for each picture, or for each label
type Places = Int[Array, "h w"]
type Number = float | Float[Array, ""]


def each(
    change: Callable[..., Array], *arrays: Shaped[Array, "b *_"], selects: bool = False
) -> Shaped[Array, "b *_changed"]:
    """Returns what a function makes of each entry of a batch of pictures, and of other arrays.

    On CPUs one after another, so that of a choice (`lax.switch`) only what was chosen is computed;
    elsewhere all together, where everything is computed and then selected. On TPUs, too, large
    pictures go one after another through a function that `selects` among costly choices.
    """

    def one_by_one(*batch: Array) -> Array:
        return lax.map(lambda entry: change(*entry), batch)

    vmapped = jax.vmap(change)
    large = math.prod(arrays[0].shape[1:3]) >= _LARGE
    on_tpu = one_by_one if selects and large else vmapped
    return platform_dependent(*arrays, cpu=one_by_one, tpu=on_tpu, default=vmapped)


def blend(low: Any, high: Any, factor: Number) -> UInt8[Array, "..."]:
    """Goes from `low` (factor 0) through `high` (1) and on; cuts fractions off. Pillow's blend."""
    start = jnp.asarray(low, jnp.float32)
    product = jnp.float32(factor) * (jnp.asarray(high, jnp.float32) - start)
    # The limit changes nothing. It keeps compilers from a fused product and sum, which rounds once.
    mixed = start + jnp.maximum(product, -65536)
    return jnp.clip(mixed, 0, 255).astype(jnp.uint8)


def gray(image: Picture) -> UInt8[Array, "h w 1"]:
    """Returns the luminance of a picture. Pillow's convert("L")."""
    if image.shape[-1] == 1:
        return image
    weighted = (image.astype(jnp.int32) * _LUMINANCE).sum(-1, keepdims=True)
    return ((weighted + (1 << 15)) >> 16).astype(jnp.uint8)


def color(image: Picture, strength: Number) -> Picture:
    """Changes the saturation: -1 is gray, 0 the picture itself. Pillow's ImageEnhance.Color."""
    return image if image.shape[-1] == 1 else blend(gray(image), image, 1 + strength)


def sharpness(image: Picture, strength: Number) -> Picture:
    """Changes the distance to a blurred picture: -1 is blurred. Pillow's ImageEnhance.Sharpness.

    The border of one pixel stays, as does a picture that is nothing but border.
    """
    pixels = image.astype(jnp.int32)
    padded = jnp.pad(pixels, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    around = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    smooth = (2 * (around + 4 * pixels) + 13) // 26  # a weight of 5 of 13, rounded
    row, column = ((np.arange(n) > 0) & (np.arange(n) < n - 1) for n in image.shape[:2])
    return jnp.where(np.outer(row, column)[..., None], blend(smooth, image, 1 + strength), image)


def look_up(image: Picture, table: UInt8[Array, "c 256"]) -> Picture:
    """Returns for each value of a channel what the channel's table has for it."""

    def plain(image: Array, table: Array) -> Array:
        indices = image.astype(jnp.int32) + 256 * jnp.arange(image.shape[-1])
        return table.reshape(-1).at[indices].get(mode="promise_in_bounds")

    def product(image: Array, table: Array) -> Array:
        """Chooses by the lower four bits with a product, and then by the upper four."""
        values = jnp.moveaxis(image, -1, 0).reshape(image.shape[-1], 1, -1)
        digits = np.arange(16, dtype=np.uint8)[:, None]
        lower = ((values & 15) == digits).astype(jnp.float32)
        rows = table.reshape(-1, 16, 16).astype(jnp.float32)
        found = jnp.where(values >> 4 == digits, jnp.einsum("cul,cln->cun", rows, lower), 0).sum(1)
        return jnp.moveaxis(found.astype(jnp.uint8).reshape(-1, *image.shape[:2]), 0, -1)

    return platform_dependent(image, table, tpu=product, default=plain)


# What makes an operation's table of values, of one channel or of each, by image, strength and
# whether the picture has this operation: if not, the table may be any.
# brightness    multiplies by 1 + strength. Pillow's ImageEnhance.Brightness
# contrast      the same for the distance to the mean luminance. Pillow's ImageEnhance.Contrast
# posterize     keeps the upper `strength` bits, 0 to 8. Pillow's ImageOps.posterize
# solarize      inverts the values from `strength` on. Pillow's ImageOps.solarize
# autocontrast  stretches each channel to 0 ... 255; one of a single value stays
# equalize      makes each value of a channel about as frequent as any other
TABLES: dict[str, Callable[[Picture, Number, Any], Any]] = {
    "identity": lambda image, strength, chosen: VALUES,
    "brightness": lambda image, strength, chosen: blend(0, VALUES, 1 + strength),
    "contrast": lambda image, strength, chosen: blend(_mean_luminance(image), VALUES, 1 + strength),
    "posterize": lambda image, bits, chosen: VALUES & (0xFF << (8 - jnp.asarray(bits, jnp.int32))),
    "solarize": lambda image, limit, chosen: jnp.where(limit > VALUES, VALUES, 255 - VALUES),
    "invert": lambda image, strength, chosen: 255 - VALUES,
    "autocontrast": lambda image, strength, chosen: _stretched(image),
    "equalize": lambda image, strength, chosen: _equalized(counts_of(image, chosen)),
}


def _mean_luminance(image: Picture) -> Int32[Array, ""]:
    count = image.shape[0] * image.shape[1]
    return (gray(image).sum(dtype=jnp.int32) + count // 2) // count  # rounded


def _stretched(image: Picture) -> Int32[Array, "c 256"]:
    """Returns the tables of Pillow's ImageOps.autocontrast."""
    low, high = (f(image, axis=(0, 1)).astype(jnp.int32)[:, None] for f in (jnp.min, jnp.max))
    stretched = 255 * (VALUES - low) // jnp.maximum(high - low, 1)
    row_of, values = map(jnp.asarray, _stretched_lower())
    lower = (values[row_of[low, high]] == VALUES[:, None]).any(-1)
    return jnp.where(high > low, jnp.clip(stretched - lower, 0, 255), VALUES)


@functools.cache
def _stretched_lower() -> tuple[Int16[np.ndarray, "256 256"], Int16[np.ndarray, "n 17"]]:
    """Returns for low and high the number of a row, and rows of values, -1 for none.

    At these values autocontrast is one below the quotient: 255 (value - low) / (high - low) is
    whole, and Pillow's double precision is below it before it cuts the fraction off. They are
    12,094 of 2.8 million, at most 17 for the same low and high.
    """
    row_of, rows = np.zeros((256, 256), np.int16), [np.full(17, -1)]
    for low, high in itertools.combinations(range(256), 2):
        value, scale = np.arange(low + 1, high + 1), 255.0 / (high - low)
        found = value[np.trunc(value * scale + -low * scale) < 255 * (value - low) // (high - low)]
        if len(found):
            row_of[low, high] = len(rows)
            rows.append(np.pad(found, (0, 17 - len(found)), constant_values=-1))
    return row_of, np.stack(rows).astype(np.int16)


def _equalized(counts: Int32[Array, "c 256"]) -> Int32[Array, "c 256"]:
    """Returns the tables of Pillow's ImageOps.equalize."""
    last = jnp.max(jnp.where(counts > 0, VALUES, 0), axis=1, keepdims=True)
    step = (counts.sum(1, keepdims=True) - jnp.take_along_axis(counts, last, 1)) // 255
    below = jnp.cumsum(counts, axis=1) - counts + step // 2
    return jnp.where(step > 0, jnp.minimum(below // jnp.maximum(step, 1), 255), VALUES)


def counts_of(image: Picture, chosen: Bool[Array, ""] | bool = True) -> Int32[Array, "c 256"]:
    """Returns how often each channel has each value; any numbers for a picture that is not chosen.

    On CPUs and GPUs by a scatter. A GPU adds only the values of pictures that are chosen, one of 14
    in RandAugment: 0.05 ms and more on an H100 for 256 pictures of 224 px. Elsewhere by a product:
    the upper and the lower four bits of the n values, as 16 zeros and ones each, are matrices, 16 x
    n times n x 16. It costs 512 operations and up to 64 bytes per value, which a TPU's matrix units
    have; an H100's memory would need 0.75 ms. On one CPU thread a channel takes 0.25 ms by the
    product, and 0.06 by the scatter.
    """
    channels = image.shape[-1]

    def scatter(image: Array, chosen: Array) -> Array:
        indices = image.astype(jnp.int32) + 256 * jnp.arange(channels)
        counts = jnp.zeros(256 * channels, jnp.int32)
        indices = jnp.where(chosen, indices, 256 * channels)  # which is nowhere
        return counts.at[indices.reshape(-1)].add(1, mode="drop").reshape(channels, 256)

    def product(image: Array, chosen: Array) -> Array:
        values = image.reshape(-1, channels).T[:, None]
        digits = np.arange(16, dtype=np.uint8)[:, None]
        upper, lower = ((x == digits).astype(jnp.bfloat16) for x in (values >> 4, values & 15))
        counts = jnp.einsum("cin,cjn->cij", upper, lower, preferred_element_type=jnp.float32)
        return counts.reshape(-1, 256).astype(jnp.int32)

    forms = {"cpu": scatter, "cuda": scatter}
    return platform_dependent(image, jnp.asarray(chosen), default=product, **forms)


def warp_numbers(
    name: str, strength: float, size: tuple[int, ...], interpolation: str
) -> Int32[np.ndarray, "*parts 2 3"]:
    """Returns the six numbers of a transform as `warp` wants them: for x, and for y.

    shear_x, shear_y          moves each row to the left by `strength` times its distance from the
                              top, or each column up by that from the left
    translate_x, translate_y  moves the picture by whole pixels; fractions are cut off
    rotate                    turns it counterclockwise about its centre. Pillow's Image.rotate

    Any other name is that of no transform. The size is the picture's height and width.

    The pixel of the result with centre (x, y) shows the place (ax + by + c, dx + ey + f). For
    `nearest` they have 16 binary digits and are for corners, as in Pillow's affine_fixed. For
    `bilinear` they have 34, of which the last 16 are apart, and are for odd x and y of twice the
    centres; a shear is exact then.
    """
    angle = -math.radians(strength)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    y, x = size[0] / 2, size[1] / 2
    right, down = cosine * -x + sine * -y + x, -sine * -x + cosine * -y + y
    six = {
        "shear_x": (1, strength, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, strength, 1, 0),
        "translate_x": (1, 0, -math.trunc(strength), 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, -math.trunc(strength)),
        "rotate": (cosine, sine, right, -sine, cosine, down),
    }.get(name, (1, 0, 0, 0, 1, 0))
    three = np.array(six, np.float64).reshape(2, 3)
    if interpolation == "bilinear":
        digits = np.rint(three * (0.5, 0.5, 1) * 2.0**34).astype(np.int64)
        return np.stack((digits >> 16, digits & 0xFFFF)).astype(np.int32)
    half = three[:, 2] + three[:, 0] * 0.5 + three[:, 1] * 0.5
    return np.floor(np.stack((three[:, 0], three[:, 1], half), 1) * 65536 + 0.5).astype(np.int32)


def warp(
    image: Picture, numbers: Int32[Array, "*parts 2 3"], interpolation: str, fill: int
) -> Picture:
    """Transforms a picture as `warp_numbers` say; what is outside of it gets the value `fill`.

    A bilinear value is cut, not rounded. Shears and shifts equal Pillow's. Turns have 32 bits and
    Pillow's 64: at most 0.005 % of the values of photographs are one level off.
    """
    height, width, _ = image.shape
    x, y = jnp.arange(width), jnp.arange(height)[:, None]
    if interpolation == "nearest":
        column, row = ((a * x + b * y + c) >> 16 for a, b, c in numbers)
        found = _pixels(image, row, column, 1)[0]
    else:
        x, y = 2 * x + 1, 2 * y + 1
        high, low = ([a * x + b * y + c for a, b, c in part] for part in numbers)
        coordinates = [more + (less >> 16) for more, less in zip(high, low, strict=True)]
        column, row = (coordinate >> 18 for coordinate in coordinates)  # they have 18 binary digits
        found = _bilinear(image, coordinates, [(less & 0xFFFF)[..., None] for less in low])
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return jnp.where(inside[..., None], found, jnp.uint8(fill))


def _pixels(image: Picture, row: Places, column: Places, count: int) -> tuple[Picture, ...]:
    """Looks pixels up, and with a count of 4 those to the right, below, and below of the right.

    Rows and columns outside are those of the edge.
    """

    def plain(image: Array, row: Array, column: Array) -> tuple[Array, ...]:
        height, width, channels = image.shape
        rows = [jnp.clip(row + i, 0, height - 1) * width for i in (0, 1)]
        columns = [jnp.clip(column + i, 0, width - 1) for i in (0, 1)]
        flat = image.reshape(-1, channels)
        indices = [y + x for y in rows for x in columns][:count]
        return tuple(flat.at[index].get(mode="promise_in_bounds") for index in indices)

    return platform_dependent(image, row, column, tpu=lambda *x: _tiled(*x)[:count], default=plain)


def _tiled(image: Picture, row: Places, column: Places) -> tuple[Picture, ...]:
    """Returns what `_pixels` does for four: of each tile of the result, with a product.

    A place moves by at most 1 per row and per column, as in all warps of policies: a tile then
    shows no more than a box of the picture. The product finds for each pixel the rows of the box,
    of which its columns are selected.

    A picture of 224 px and 3 channels takes 2.0 G multiply-adds. Shears and shifts, which move
    whole rows or columns, could do with a twentieth of that, in a form of their own.
    """
    size, channels = np.array(image.shape[:2]), image.shape[-1]
    counts = -(-size // _TILE)
    tile = -(-size // counts)
    box = np.minimum(tile.sum() + 2, size + 2)
    bordered = jnp.pad(image.astype(jnp.float32), ((1, 1), (1, 1), (0, 0)), mode="edge")

    def tiles(coordinates: Array, axis: int) -> tuple[Array, Array]:
        coordinates = jnp.clip(coordinates, -1, size[axis] - 1) + 1  # in the bordered picture
        coordinates = jnp.pad(coordinates, [(0, n) for n in counts * tile - size], mode="edge")
        parts = coordinates.reshape(counts[0], tile[0], counts[1], tile[1]).swapaxes(1, 2)
        parts = parts.reshape(-1, tile[0] * tile[1])
        starts = jnp.minimum(parts.min(1), size[axis] + 2 - box[axis])
        return parts - starts[:, None], starts

    def of_tile(rows: Array, top: Array, columns: Array, left: Array) -> tuple[Array, ...]:
        lines, sides = (np.arange(length)[:, None] for length in box)
        chosen = jnp.where(lines == rows, 1.0, jnp.where(lines == rows + 1, 256.0, 0.0))
        part = lax.dynamic_slice(bordered, (top, left, 0), (*box, channels))
        found = jnp.einsum("rxc,rp->cxp", part, chosen)  # a row, plus 256 times the next one
        both = [jnp.where(sides == x, found, 0).sum(1) for x in (columns, columns + 1)]
        return tuple(x.astype(jnp.int32) >> i & 255 for i in (0, 8) for x in both)

    def whole(parts: Array) -> Array:
        parts = parts.astype(jnp.uint8).reshape(*counts, channels, *tile)
        parts = parts.transpose(0, 3, 1, 4, 2).reshape(*(counts * tile), channels)
        return parts[: size[0], : size[1]]

    return tuple(map(whole, jax.vmap(of_tile)(*tiles(row, 0), *tiles(column, 1))))


def _bilinear(image: Picture, coordinates: Sequence[Array], more: Sequence[Array]) -> Picture:
    """Mixes four pixels; exactly between two, that is where a coordinate is a pixel's centre.

    The coordinates are across and down, with 18 binary digits; `more` has the 16 digits after them.
    """
    column, row = ((coordinate - (1 << 17)) >> 18 for coordinate in coordinates)
    right, lower = (((coordinate - (1 << 17)) & 0x3FFFF)[..., None] for coordinate in coordinates)
    here, beside, below, beyond = (x.astype(jnp.int32) for x in _pixels(image, row, column, 4))
    rest = more[1] * (below - here) + more[0] * (beside - here)
    mixed = (here << 18) + lower * (below - here) + right * (beside - here) + (rest >> 16)
    both = lower.astype(jnp.float32) * right * (here - beside - below + beyond) / (1 << 18)
    return ((mixed + jnp.floor(both).astype(jnp.int32)) >> 18).astype(jnp.uint8)
