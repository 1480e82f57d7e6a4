"""What `pixels` looks up, as products of matrices and moves: a TPU is slow at gathers.

Each function gives exactly what the one with a gather gives. The products are of whole numbers of
at most eight bits, which a TPU's matrix units multiply exactly, and sums of at most 16 bits.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

_TILE = 56  # largest side of a tile: what it shows has less than 128 rows and columns


def look_up(image: UInt8[Array, "h w c"], table: UInt8[Array, "c 256"]) -> UInt8[Array, "h w c"]:
    """Chooses by the lower four bits with a product of matrices, and then by the upper four."""
    height, width, channels = image.shape
    values = image.astype(jnp.int32).transpose(2, 0, 1).reshape(channels, 1, -1)
    digits = np.arange(16)[:, None]
    lower = ((values & 15) == digits).astype(jnp.float32)
    rows = table.reshape(channels, 16, 16).astype(jnp.float32)
    of_lower = jnp.einsum("cul,cln->cun", rows, lower)
    found = jnp.where(values >> 4 == digits, of_lower, 0).sum(1).astype(jnp.int32)
    return found.astype(jnp.uint8).reshape(channels, height, width).transpose(1, 2, 0)


def four_pixels(
    image: UInt8[Array, "h w c"], row: Int[Array, "h w"], column: Int[Array, "h w"]
) -> tuple[UInt8[Array, "h w c"], ...]:
    """Returns the pixels of some places, those to the right, those below, and below of the right.

    Rows and columns outside are those of the edge. Of shears and shifts, whole rows or columns are
    moved.
    """
    x, y = jnp.arange(image.shape[1]), jnp.arange(image.shape[0])[:, None]
    moves_rows = (row == row[:, :1]).all() & (column - x == column[:, :1]).all()
    moves_columns = (column == column[:1]).all() & (row - y == row[:1]).all()

    def of_columns() -> tuple[Array, ...]:
        turned = image.swapaxes(0, 1)
        four = _moved_rows(turned, column[0], row[0])
        here, below, beside, beyond = (found.swapaxes(0, 1) for found in four)
        return here, beside, below, beyond

    forms = (
        lambda: _from_tiles(image, row, column),
        lambda: _moved_rows(image, row[:, 0], column[:, 0]),
        of_columns,
    )
    return lax.switch(jnp.where(moves_rows, 1, 2 * moves_columns), forms)


def _bytes_of(left: Array, right: Array) -> tuple[UInt8[Array, "*_"], ...]:
    """Returns the lower bytes of both numbers, and then the upper ones."""
    numbers = (left.astype(jnp.int32), right.astype(jnp.int32))
    return tuple((x >> i & 255).astype(jnp.uint8) for i in (0, 8) for x in numbers)


def _two_rows(image: UInt8[Array, "h w c"], row: Int[Array, " n"]) -> Float[Array, "c w n"]:
    """Returns the pixels of each of some rows, plus 256 times those of the next row: a product."""
    numbers = jnp.arange(image.shape[0])[:, None]
    chosen = jnp.where(numbers == row, 1, jnp.where(numbers == row + 1, 256, 0))
    left, right = image.astype(jnp.float32), chosen.astype(jnp.float32)
    return jnp.einsum("rxc,rp->cxp", left, right)


def _moved_rows(
    image: UInt8[Array, "h w c"], row: Int[Array, " h"], start: Int[Array, " h"]
) -> tuple[UInt8[Array, "h w c"], ...]:
    """Returns four pixels each, where a row of the result is one of the picture that is moved.

    It moves by powers of two: by each of them or not.
    """
    height, width, _ = image.shape
    bits = (2 * width).bit_length()
    sides = (width, (1 << bits) - width)
    bordered = jnp.pad(image, ((1, 1), sides, (0, 0)), mode="edge")
    found = _two_rows(bordered, jnp.clip(row, -1, height - 1) + 1)
    steps = jnp.clip(start, -width, width) + width
    for bit in reversed(range(bits)):
        length = width + (1 << bit)
        found = jnp.where(
            steps >> bit & 1, found[:, 1 << bit : length + (1 << bit)], found[:, :length]
        )
    return tuple(x.transpose(2, 1, 0) for x in _bytes_of(found[:, :-1], found[:, 1:]))


def _from_tiles(
    image: UInt8[Array, "h w c"], row: Int[Array, "h w"], column: Int[Array, "h w"]
) -> tuple[UInt8[Array, "h w c"], ...]:
    """Returns four pixels each, for any warp by which a place moves by at most 2 per pixel.

    A tile of the result then shows no more than a box of the picture. A product finds for each
    pixel the rows of the box, of which its columns are selected.
    """
    size, channels = np.array(image.shape[:2]), image.shape[-1]
    counts = -(-size // _TILE)
    tile = -(-size // counts)
    box = np.minimum(2 * tile + 2, size + 2)

    def tiles(places: Array, axis: int) -> tuple[Array, Array]:
        places = jnp.clip(places, -1, size[axis] - 1) + 1  # in a picture with a border of 1
        places = jnp.pad(places, [(0, n) for n in counts * tile - size], mode="edge")
        parts = places.reshape(counts[0], tile[0], counts[1], tile[1]).swapaxes(1, 2)
        parts = parts.reshape(-1, tile[0] * tile[1])
        starts = jnp.minimum(parts.min(1), size[axis] + 2 - box[axis])
        return parts - starts[:, None], starts

    bordered = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")

    def of_tile(rows: Array, top: Array, columns: Array, left: Array) -> tuple[Array, ...]:
        found = _two_rows(lax.dynamic_slice(bordered, (top, left, 0), (*box, channels)), rows)
        numbers = jnp.arange(box[1])[:, None]
        both = (jnp.where(numbers == x, found, 0).sum(1) for x in (columns, columns + 1))
        return _bytes_of(*both)

    def whole(parts: UInt8[Array, "tiles c pixels"]) -> UInt8[Array, "h w c"]:
        parts = parts.reshape(*counts, channels, *tile).transpose(0, 3, 1, 4, 2)
        return parts.reshape(*(counts * tile), channels)[: size[0], : size[1]]

    return tuple(map(whole, jax.vmap(of_tile)(*tiles(row, 0), *tiles(column, 1))))
