"""Mixup and cutmix: a training step sees pictures that are mixed in pairs, and both labels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_KEY = 0x6D69786E  # sets these random numbers apart from those of dropout


class Mixing(NamedTuple):
    """Which pictures are mixed.

    mixup   alpha of mixup's beta distribution (arXiv 1710.09412); 0: no mixup
    cutmix  alpha of cutmix's (arXiv 1905.04899); 0: no cutmix
    until   the step from which on nothing is mixed

    With both, each step takes one of them, with equal probability, as in torchvision's recipes.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    until: int = 0

    @property
    def mixes(self) -> bool:
        return self.until > 0 and (self.mixup > 0 or self.cutmix > 0)


def partners(rows: Array) -> Array:
    """Returns for each row of a batch the one that it is mixed with: half a batch before it.

    Not the row before it, which shows the same picture in repeated augmentation.
    """
    return jnp.roll(rows, max(1, len(rows) // 2), axis=0)


def mix(
    images: Float[Array, "b h w c"], key: Array, step: Array, mixing: Mixing
) -> tuple[Float[Array, "b h w c"], Float[Array, ""]]:
    """Mixes each image with its partner; returns the images, and the share of the own image.

    The share is the same for the whole batch. `key` and `step` decide it and the place of the
    rectangle. On several devices each one mixes its own images, all with the same share.
    """
    seeds = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _KEY), step), 4)
    height, width = images.shape[1:3]
    masks = []
    if mixing.mixup:
        share = jax.random.beta(seeds[0], mixing.mixup, mixing.mixup)
        masks.append(jnp.full((height, width), share))
    if mixing.cutmix:
        share = jax.random.beta(seeds[1], mixing.cutmix, mixing.cutmix)
        masks.append(1.0 - _rectangle(seeds[2], 1 - share, height, width))
    own = masks[0]
    if len(masks) == 2:
        own = jnp.where(jax.random.bernoulli(seeds[3]), masks[0], masks[1])
    own = jnp.where(step < mixing.until, own, 1.0).astype(images.dtype)
    mask = own[None, :, :, None]
    return mask * images + (1 - mask) * partners(images), jnp.mean(own)


def _rectangle(key: Array, area: Array, height: int, width: int) -> Float[Array, "h w"]:
    """Returns a mask with a rectangle of ones, which the borders of the picture may cut.

    The rectangle has the picture's aspect ratio and a part of its area; its centre is uniform.
    """
    side = jnp.sqrt(area) / 2

    def inside(key: Array, size: int) -> Array:
        centre = jax.random.randint(key, (), 0, size)
        reach = jnp.floor(side * size)
        places = jnp.arange(size)
        return (places >= centre - reach) & (places < centre + reach)

    for_rows, for_columns = jax.random.split(key)
    return jnp.outer(inside(for_rows, height), inside(for_columns, width)).astype(jnp.float32)
