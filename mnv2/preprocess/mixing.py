"""Mixup and cutmix: pictures of a batch are mixed in pairs, and so are their labels."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.preprocess.text import MIX, operation
from mnv2.runtime.errors import number

SMALLEST_ALPHA = 1e-3  # of a beta distribution: a smaller one is 0 in float32
KEY = 0x6D69786E  # sets the random numbers of mixing apart from those of dropout


def alpha(field: str, value: Any) -> float:
    """Checks the alpha of a beta distribution, 0 for none."""
    return value if value == 0 else number(SMALLEST_ALPHA, 1e6, high_open=False)(field, value)


def partners(rows: Array) -> Array:
    """Returns for each row of a batch the one that it is mixed with: half a batch before it."""
    # Not the row before it, which shows the same picture in repeated augmentation.
    return jnp.roll(rows, max(1, len(rows) // 2), axis=0)


@operation(MIX, mixup=alpha, cutmix=alpha)
def mix(
    images: Float[Array, "b h w c"],
    key: Array,
    step: Array,
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    until: Any = None,
) -> tuple[Float[Array, "b h w c"], Float[Array, ""]]:
    """Mixes pairs by mixup and cutmix, given alpha of each (0: never), until a duration.

    mixup   arXiv 1710.09412: the mean of two pictures, weighted by a beta distribution
    cutmix  arXiv 1905.04899: a rectangle of one picture is pasted into the other
    until   the step from which on nothing is mixed; in a text a duration such as '10 epochs'

    With both, each step takes one of them, with equal probability, as in torchvision's recipes.
    `key` and `step` decide it, the share and the rectangle. On several devices each one mixes its
    own images, all with the same share. Returns the images, and the share of the own image, which
    is the same for the whole batch.
    """
    seeds = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, KEY), step), 4)
    height, width = images.shape[1:3]
    masks = []
    if mixup:
        share = jax.random.beta(seeds[0], mixup, mixup)
        masks.append(jnp.full((height, width), share))
    if cutmix:
        share = jax.random.beta(seeds[1], cutmix, cutmix)
        masks.append(1.0 - _rectangle(seeds[2], 1 - share, height, width))
    own = masks[0]
    if len(masks) == 2:
        own = jnp.where(jax.random.bernoulli(seeds[3]), masks[0], masks[1])
    if until is not None:
        own = jnp.where(step < until, own, 1.0)
    own = own.astype(images.dtype)
    mask = own[None, :, :, None]
    return mask * images + (1 - mask) * partners(images), jnp.mean(own)


def _rectangle(key: Array, area: Array, height: int, width: int) -> Float[Array, "h w"]:
    """Returns a mask with a rectangle of ones, of a part of the area, at a uniform centre."""
    side = jnp.sqrt(area) / 2

    def inside(key: Array, size: int) -> Array:
        centre = jax.random.randint(key, (), 0, size)
        reach = jnp.floor(side * size)
        positions = jnp.arange(size)
        return (positions >= centre - reach) & (positions < centre + reach)

    for_rows, for_columns = jax.random.split(key)
    return jnp.outer(inside(for_rows, height), inside(for_columns, width)).astype(jnp.float32)
