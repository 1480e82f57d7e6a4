"""Operations that are one thing each: flip, crop, erase, distort colours; and noise in labels.

What happens to a picture is a function of its own pixels and key, whatever batch it is in.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Key

from mnv2.preprocess import pixels
from mnv2.preprocess.pixels import Keys, Pictures
from mnv2.preprocess.text import LABELS, PICTURES, Pipeline, operation
from mnv2.runtime.errors import number, truth, whole

AREA = (0.02, 0.33)  # of the picture, that is erased
ASPECT = (0.3, 3.3)  # height to width
_TRIES = 10  # to find a rectangle that is smaller than the picture
_AMOUNTS = {  # are added to values of 0 to 1 and to a hue of 0 to 1, or multiply distances
    "brightness": (-32 / 255, 32 / 255),
    "saturation": (0.5, 1.5),
    "hue": (-0.2, 0.2),
    "contrast": (0.5, 1.5),
}
_FAST = (("brightness", "saturation"), ("saturation", "brightness"))  # the second thrice as likely
_FULL = (
    ("brightness", "saturation", "hue", "contrast"),
    ("saturation", "brightness", "contrast", "hue"),
    ("contrast", "hue", "brightness", "saturation"),
    ("hue", "saturation", "contrast", "brightness"),
)
_PROBABILITY = number(0, 1, high_open=False)

type Labels = Int32[Array, "b"]
type Colour = int | tuple[int, ...]  # one value, or one for each channel


def _colour(field: str, value: Any) -> Colour:
    """Checks values of 0 to 255."""
    several, check = isinstance(value, tuple | list), whole(0, 255)
    return tuple(check(field, channel) for channel in value) if several else check(field, value)


@operation(PICTURES, probability=_PROBABILITY)
def flip(images: Pictures, keys: Keys, probability: float = 0.5) -> Pictures:
    """Mirrors left to right."""
    flips = jax.vmap(jax.random.uniform)(keys) < probability
    return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


@operation(PICTURES, pad=whole(1))
def pad_crop(images: Pictures, keys: Keys, pad: int = 4) -> Pictures:
    """Adds `pad` black pixels on each side, and crops back to the old size at a random place.

    Section 4.2 of the ResNet paper (arXiv 1512.03385); torchvision's RandomCrop with padding.
    """
    sides = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    corners = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * pad + 1))(keys)

    def crop(padded: Array, corner: Array) -> Array:
        return lax.dynamic_slice(padded, (*corner, 0), images.shape[1:])

    return pixels.each(crop, jnp.pad(images, sides), corners)


@operation(PICTURES, probability=_PROBABILITY, fill=_colour)
def erase(
    images: Pictures, keys: Keys, probability: float = 0.25, fill: Colour | None = None
) -> Pictures:
    """Fills a rectangle with one colour, or the mean of pixels if none is given.

    Random erasing (arXiv 1708.04896). The rectangle is drawn as by torchvision's RandomErasing,
    which erases after the pixels were normalised, with 0: that is the mean. `with_fill` sets it.
    """
    height, width = images.shape[1:3]
    holes = jax.vmap(lambda key: _hole(key, height, width, probability))(keys)
    return jnp.where(holes[..., None], jnp.array(fill, jnp.uint8), images)


def _hole(key: Key[Array, ""], height: int, width: int, probability: float) -> Bool[Array, "h w"]:
    """Returns where a picture is erased. torchvision's RandomErasing.get_params."""
    for_place, for_size = jax.random.split(key)
    erases, *positions = jax.random.uniform(for_place, (3,))
    for_area, for_aspect = jax.random.uniform(for_size, (2, _TRIES))
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * for_area)
    low, high = np.log(ASPECT)
    aspect = jnp.exp(low + (high - low) * for_aspect)
    rows, columns = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    possible = (rows < height) & (columns < width)
    first = jnp.argmax(possible)

    def inside(length: int, erased: Array, position: Array) -> Array:
        free = length - erased
        start = jnp.minimum(jnp.floor(position * (free + 1)), free)
        return (jnp.arange(length) >= start) & (jnp.arange(length) < start + erased)

    in_rows, in_columns = map(inside, (height, width), (rows[first], columns[first]), positions)
    return (erases < probability) & possible[first] & in_rows[:, None] & in_columns


def with_fill(pipeline: Pipeline, mean: tuple[float, ...]) -> Pipeline:
    """Returns a pipeline whose `erase` without a fill has the mean of pixels (of 1) as its fill."""
    values = tuple(round(255 * value) for value in mean)
    fill = values[0] if len(set(values)) == 1 else values
    return Pipeline(
        tuple(
            call.replace(fill=fill) if call.name == "erase" and call["fill"] is None else call
            for call in pipeline.calls
        )
    )


@operation(PICTURES, fast=truth)
def distort_color(images: Pictures, keys: Keys, fast: bool = True) -> Pictures:
    """Changes brightness and saturation, and with fast=False hue and contrast too.

    `distort_color` of slim's inception_preprocessing.py, in one of its four orders, then rounded.
    The papers' networks were trained with its fast mode. Gray pictures have no saturation or hue.
    """
    forms = [functools.partial(_in_order, order) for order in (_FAST if fast else _FULL)]
    low, high = jnp.array(tuple(_AMOUNTS.values())).T

    def distorted(image: Array, key: Array) -> Array:
        for_order, for_amounts = jax.random.split(key)
        order = jax.random.randint(for_order, (), 0, 4)  # the last form if there are only two
        amounts = jax.random.uniform(for_amounts, (len(_AMOUNTS),), minval=low, maxval=high)
        changed = lax.switch(order, forms, image.astype(jnp.float32) / 255, amounts)
        return jnp.round(255 * jnp.clip(changed, 0, 1)).astype(jnp.uint8)

    return pixels.each(distorted, images, keys)


def _in_order(
    names: tuple[str, ...], image: Float[Array, "h w c"], amounts: Float[Array, "4"]
) -> Float[Array, "h w c"]:
    for name in names:
        amount = amounts[list(_AMOUNTS).index(name)]
        if name == "brightness":
            image = image + amount
        elif name == "contrast":
            mean = image.mean((0, 1))
            image = mean + amount * (image - mean)
        elif image.shape[-1] == 3:
            image = _saturated(image, amount) if name == "saturation" else _turned(image, amount)
    return image


def _saturated(image: Float[Array, "h w 3"], factor: Array) -> Float[Array, "h w 3"]:
    """Multiplies the saturation, up to 1; hue and value stay. tf.image.adjust_saturation."""
    high, low = image.max(-1, keepdims=True), image.min(-1, keepdims=True)
    most = jnp.maximum(high, 0) / jnp.where(high > low, high - low, 1)
    return high - jnp.minimum(factor, most) * (high - image)


def _turned(image: Float[Array, "h w 3"], turn: Array) -> Float[Array, "h w 3"]:
    """Adds to the hue; saturation and value stay. tf.image.adjust_hue.

    No comparison is with a largest value, as a compiler may compute values twice and differently.
    """
    red, green, blue = jnp.moveaxis(image, -1, 0)
    high, low = image.max(-1), image.min(-1)
    length = jnp.where(high > low, high - low, 1)
    sixths = jnp.where(green >= blue, 2 + (blue - red) / length, 4 + (red - green) / length)
    sixths = jnp.where((red >= green) & (red >= blue), (green - blue) / length, sixths)
    sector = (sixths + 6 * turn)[..., None] + jnp.array((5, 3, 1))
    sector -= 6 * jnp.floor(sector / 6)
    less = jnp.clip(jnp.minimum(sector, 4 - sector), 0, 1)
    return high[..., None] - less * (high - low)[..., None]


@operation(LABELS, probability=_PROBABILITY)
def label_noise(labels: Labels, keys: Keys, classes: int, probability: float = 0.1) -> Labels:
    """Replaces labels by another class, each as likely, and always the same for an example."""

    def noisy(label: Array, key: Array) -> Array:
        for_noise, for_class = jax.random.split(key)
        other = (label + jax.random.randint(for_class, (), 1, classes)) % classes
        return jnp.where(jax.random.uniform(for_noise) < probability, other, label)

    return jax.vmap(noisy)(labels, keys)
