"""Which operations a training picture goes through, and how strong they are.

random         RandAugment (arXiv 1909.13719): some operations of 14, of one strength
trivial_wide   TrivialAugment (arXiv 2103.10158), wide: one operation of 14, of any strength
auto_imagenet  AutoAugment (arXiv 1805.09501): one of the 25 pairs that were found on ImageNet

The operations, their strengths and their probabilities are those of torchvision's classes
RandAugment, TrivialAugmentWide and AutoAugment. Random numbers are a function of a pair of seeds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mnv2.data.augment import affine, operations

POLICIES = ("none", "random", "trivial_wide", "auto_imagenet")
STRENGTHS = 31  # that RandAugment and TrivialAugment divide a range into
_OF_AUTO = 10  # the same for AutoAugment

type Apply = Callable[[tf.Tensor, tf.Tensor, "Policy"], tf.Tensor]


class Policy(NamedTuple):
    """What is done to each picture.

    name           one of POLICIES
    operations     how many, one after another, for `random`
    strength       0 to 30, for `random`
    interpolation  nearest or bilinear, of shears, shifts and turns
    fill           the value of what these bring in from outside of the picture, 0 to 255
    """

    name: str = "none"
    operations: int = 2
    strength: int = 9
    interpolation: str = "nearest"
    fill: int = 0


def _affine(six: Callable[[tf.Tensor, tf.Tensor], affine.Six]) -> Apply:
    return lambda image, strength, policy: operations.transform(
        image, six(image, strength), interpolation=policy.interpolation, fill=policy.fill
    )


def _factor(change: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> Apply:
    return lambda image, strength, _: change(image, 1 + strength)


# By name, the operation, and whether its strength may be negative as well.
OPERATIONS: dict[str, tuple[Apply, bool]] = {
    "identity": (lambda image, *_: image, False),
    "shear_x": (_affine(lambda _, level: affine.shear_x(level)), True),
    "shear_y": (_affine(lambda _, level: affine.shear_y(level)), True),
    "translate_x": (_affine(lambda _, pixels: affine.translate(pixels, 0.0)), True),
    "translate_y": (_affine(lambda _, pixels: affine.translate(0.0, pixels)), True),
    "rotate": (_affine(affine.rotate), True),
    "brightness": (_factor(operations.brightness), True),
    "color": (_factor(operations.color), True),
    "contrast": (_factor(operations.contrast), True),
    "sharpness": (_factor(operations.sharpness), True),
    "posterize": (lambda image, bits, _: operations.posterize(image, bits), False),
    "solarize": (lambda image, threshold, _: operations.solarize(image, threshold), False),
    "autocontrast": (lambda image, *_: operations.autocontrast(image), False),
    "equalize": (lambda image, *_: operations.equalize(image), False),
    "invert": (lambda image, *_: operations.invert(image), False),
}
_NAMES = tuple(name for name in OPERATIONS if name != "invert")  # of random and trivial_wide
_FACTORS = ("brightness", "color", "contrast", "sharpness")

# Pairs of (operation, probability, strength of 0 to 9): table 9 of the paper.
_NONE = 0
AUTO_IMAGENET = (
    (("posterize", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, _NONE)),
    (("equalize", 0.8, _NONE), ("equalize", 0.6, _NONE)),
    (("posterize", 0.6, 7), ("posterize", 0.6, 6)),
    (("equalize", 0.4, _NONE), ("solarize", 0.2, 4)),
    (("equalize", 0.4, _NONE), ("rotate", 0.8, 8)),
    (("solarize", 0.6, 3), ("equalize", 0.6, _NONE)),
    (("posterize", 0.8, 5), ("equalize", 1.0, _NONE)),
    (("rotate", 0.2, 3), ("solarize", 0.6, 8)),
    (("equalize", 0.6, _NONE), ("posterize", 0.4, 6)),
    (("rotate", 0.8, 8), ("color", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalize", 0.6, _NONE)),
    (("equalize", 0.0, _NONE), ("equalize", 0.8, _NONE)),
    (("invert", 0.6, _NONE), ("equalize", 1.0, _NONE)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("color", 1.0, 2)),
    (("color", 0.8, 8), ("solarize", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, _NONE)),
    (("shear_x", 0.6, 5), ("equalize", 1.0, _NONE)),
    (("color", 0.4, 0), ("equalize", 0.6, _NONE)),
    (("equalize", 0.4, _NONE), ("solarize", 0.2, 4)),
    (("solarize", 0.6, 5), ("autocontrast", 0.6, _NONE)),
    (("invert", 0.6, _NONE), ("equalize", 1.0, _NONE)),
    (("color", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalize", 0.8, _NONE), ("equalize", 0.6, _NONE)),
)


def strengths(name: str, policy: str) -> np.ndarray:
    """Returns the strengths of an operation, from the weakest to the strongest.

    Shifts are in pixels for `trivial_wide`, and in parts of the picture's size otherwise.
    """
    wide = policy == "trivial_wide"
    count = _OF_AUTO if policy == "auto_imagenet" else STRENGTHS
    if name == "posterize":
        dropped = np.arange(count) / ((count - 1) / (6 if wide else 4))
        return 8 - np.round(dropped).astype(np.float32)
    if name == "solarize":
        return _evenly(255, 0, count)
    most = {
        **dict.fromkeys(("shear_x", "shear_y"), 0.99 if wide else 0.3),
        **dict.fromkeys(("translate_x", "translate_y"), 32.0 if wide else 150 / 331),
        "rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(_FACTORS, 0.99 if wide else 0.9),
    }
    return _evenly(0, most.get(name, 0), count)


def _evenly(start: float, end: float, count: int) -> np.ndarray:
    """Returns numbers from `start` to `end` as torch.linspace does: from both ends to the middle.

    Half of 32 is then a little less than 16, and moves a picture by 15 pixels.
    """
    numbers = np.arange(count)
    step = np.float64(np.float32((end - start) / (count - 1)))  # rounded once more only at the end
    upwards, downwards = start + step * numbers, end - step * (count - 1 - numbers)
    return np.where(numbers < count // 2, upwards, downwards).astype(np.float32)


def augment(image: tf.Tensor, seed: tf.Tensor, policy: Policy) -> tf.Tensor:
    """Augments a picture (h w c, uint8) as a policy says; `seed` (2,) decides every choice."""
    if policy.name == "none":
        return image
    count = policy.operations if policy.name == "random" else 1
    for one in tf.unstack(tf.random.experimental.stateless_split(seed, count)):
        shape, image = image.shape, _traced(policy)(image, one)
        image.set_shape(shape)
    return image


@functools.cache
def _traced(policy: Policy) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns one application of a policy as a graph, which takes seconds to build.

    Every epoch of a data set on disk is a pipeline of its own, in which it is used again.
    """

    def change(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        if policy.name == "auto_imagenet":
            return _auto(image, seed, policy)
        which, level, sign = _integers(seed, (len(_NAMES), STRENGTHS, 2))
        if policy.name == "random":
            level = tf.constant(policy.strength)
        return _one_of(_NAMES, which, image, level, sign, policy)

    return tf.function(change)


def _auto(image: tf.Tensor, seed: tf.Tensor, policy: Policy) -> tf.Tensor:
    names = tuple(OPERATIONS)
    table = [[(names.index(name), level) for name, _, level in pair] for pair in AUTO_IMAGENET]
    odds = tf.constant([[odds for _, odds, _ in pair] for pair in AUTO_IMAGENET])
    for_choice, for_odds = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    which, *signs = _integers(for_choice, (len(AUTO_IMAGENET), 2, 2))
    chances = tf.random.stateless_uniform((2,), for_odds)
    for place in range(2):
        operation, level = tf.unstack(tf.constant(table)[which, place])

        def changed(
            image: tf.Tensor = image,
            operation: tf.Tensor = operation,
            level: tf.Tensor = level,
            sign: tf.Tensor = signs[place],
        ) -> tf.Tensor:
            return _one_of(names, operation, image, level, sign, policy)

        image = tf.cond(chances[place] <= odds[which, place], changed, lambda image=image: image)
    return image


def _integers(seed: tf.Tensor, limits: tuple[int, ...]) -> list[tf.Tensor]:
    """Returns a random whole number below each limit."""
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, len(limits)))
    return [
        tf.random.stateless_uniform((), one, maxval=limit, dtype=tf.int32)
        for one, limit in zip(seeds, limits, strict=True)
    ]


def _one_of(
    names: tuple[str, ...],
    which: tf.Tensor,
    image: tf.Tensor,
    level: tf.Tensor,
    sign: tf.Tensor,
    policy: Policy,
) -> tf.Tensor:
    """Applies the operation with the number `which`, with the strength number `level`."""

    def branch(name: str) -> Callable[[], tf.Tensor]:
        return lambda: apply(name, image, level, sign, policy)

    changed = tf.switch_case(which, [branch(name) for name in names])
    changed.set_shape(image.shape)
    return changed


def apply(
    name: str, image: tf.Tensor, level: tf.Tensor, sign: tf.Tensor, policy: Policy
) -> tf.Tensor:
    """Applies an operation with the strength number `level`; with a `sign` of 0 to the other side.

    Operations whose strength has no sign ignore it.
    """
    operation, signed = OPERATIONS[name]
    strength = tf.cast(tf.constant(strengths(name, policy.name))[level], tf.float64)
    if name.startswith("translate") and policy.name != "trivial_wide":
        strength *= tf.cast(tf.shape(image)[1 if name.endswith("x") else 0], tf.float64)
    if signed:
        strength *= tf.cast(2 * sign - 1, tf.float64)
    return operation(image, strength, policy)
