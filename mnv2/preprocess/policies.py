"""Policies: which operations a training picture goes through, and how strong they are.

The operations, their strengths and their probabilities are those of torchvision's classes
RandAugment, TrivialAugmentWide and AutoAugment; `pixels` has their arithmetic.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, Key, UInt8

from mnv2.preprocess import pixels
from mnv2.preprocess.text import PICTURES, Call, operation
from mnv2.runtime.errors import choice, whole

STRENGTHS = 31  # that RandAugment and TrivialAugment divide a range into
_OF_AUTO = 10  # the same for AutoAugment
_WARPS = {
    "shear_x": lambda level, height, width: pixels.shear_x(level),
    "shear_y": lambda level, height, width: pixels.shear_y(level),
    "translate_x": lambda shift, height, width: pixels.translate(shift, 0),
    "translate_y": lambda shift, height, width: pixels.translate(0, shift),
    "rotate": pixels.rotate,
}
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_SIGNED = (*_WARPS, *_FACTORS)  # whose strength may be negative as well
_TABLES = ("posterize", "solarize", "autocontrast", "equalize")
NAMES = ("identity", *_SIGNED, *_TABLES)  # of RandAugment and TrivialAugment
_ALL = (*NAMES, "invert")
_INTERPOLATION = choice(("nearest", "bilinear"))
_FILL = whole(0, 255)

# Pairs of (operation, probability, strength of 0 to 9): table 9 of AutoAugment's paper.
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


@operation(
    PICTURES,
    operations=whole(1, 14),
    strength=whole(0, STRENGTHS - 1),
    interpolation=_INTERPOLATION,
    fill=_FILL,
)
def rand_augment(
    images: UInt8[Array, "b h w c"],
    keys: Key[Array, "b"],
    operations: int = 2,
    strength: int = 9,
    interpolation: str = "nearest",
    fill: int = 0,
) -> UInt8[Array, "b h w c"]:
    """RandAugment: some operations of 14, one after another, of a strength of 0 to 30.

    arXiv 1909.13719; torchvision's RandAugment. What shears, shifts and turns bring in from outside
    of a picture has the value `fill`.
    """
    limits = jnp.array((len(NAMES), 2))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (operations, 2), 0, limits))(keys)
    cases = _cases(NAMES, "rand_augment", [strength], images.shape[1:3], interpolation)
    return _apply(images, drawn @ jnp.array((2, 1)), cases, interpolation, fill)


@operation(PICTURES, interpolation=_INTERPOLATION, fill=_FILL)
def trivial_augment_wide(
    images: UInt8[Array, "b h w c"],
    keys: Key[Array, "b"],
    interpolation: str = "nearest",
    fill: int = 0,
) -> UInt8[Array, "b h w c"]:
    """TrivialAugment, wide: one operation of 14, of any strength.

    arXiv 2103.10158; torchvision's TrivialAugmentWide.
    """
    limits = jnp.array((len(NAMES), STRENGTHS, 2))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (1, 3), 0, limits))(keys)
    levels = range(STRENGTHS)
    cases = _cases(NAMES, "trivial_augment_wide", levels, images.shape[1:3], interpolation)
    return _apply(images, drawn @ jnp.array((2 * STRENGTHS, 2, 1)), cases, interpolation, fill)


@operation(PICTURES, interpolation=_INTERPOLATION, fill=_FILL)
def auto_augment(
    images: UInt8[Array, "b h w c"],
    keys: Key[Array, "b"],
    interpolation: str = "nearest",
    fill: int = 0,
) -> UInt8[Array, "b h w c"]:
    """AutoAugment: one of the 25 pairs of operations that were found on ImageNet.

    arXiv 1805.09501, table 9; torchvision's AutoAugment.
    """
    cases = _cases(_ALL, "auto_augment", range(_OF_AUTO), images.shape[1:3], interpolation)
    return _apply(images, jax.vmap(_auto_rows)(keys), cases, interpolation, fill)


def _auto_rows(key: Key[Array, ""]) -> Int[Array, "2"]:
    """Draws the rows of `_cases` for one picture; row 0 is the identity."""
    first = [[2 * (_OF_AUTO * _ALL.index(name) + level) for name, _, level in pair]
             for pair in AUTO_IMAGENET]  # fmt: skip
    odds = jnp.array([[odds for _, odds, _ in pair] for pair in AUTO_IMAGENET])
    for_choice, for_odds = jax.random.split(key)
    limits = jnp.array((len(AUTO_IMAGENET), 2, 2))
    which, *signs = jax.random.randint(for_choice, (3,), 0, limits)
    applied = jax.random.uniform(for_odds, (2,)) <= odds[which]
    return jnp.where(applied, jnp.array(first)[which] + jnp.stack(signs), 0)


def largest_shift(call: Call, side: int) -> int:
    """Returns by how many pixels one operation of a policy can shift a picture with this side."""
    if call.name == "trivial_augment_wide":
        return int(strengths("translate_x", call.name).max())
    if call.name == "rand_augment":
        part = strengths("translate_x", call.name)[int(dict(call.arguments)["strength"])]
        return int(float(part) * side)
    return 0  # AutoAugment's pairs have no shifts


def strengths(name: str, policy: str) -> np.ndarray:
    """Returns the strengths of an operation, from the weakest to the strongest.

    Shifts are in pixels for `trivial_augment_wide`, and in parts of the picture's size otherwise.
    """
    wide = policy == "trivial_augment_wide"
    count = _OF_AUTO if policy == "auto_augment" else STRENGTHS
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


class Case(NamedTuple):
    """An operation of one strength, or a row for each of many, in arrays.

    part     of _PARTS
    source   of _SOURCES, for a part that looks values up
    table    256 values, for the source that is this table
    numbers  of `pixels.warp`
    factor   of blends
    """

    part: Any
    source: Any
    table: Any
    numbers: Any
    factor: Any


_PARTS = ("look up", "warp", "color", "sharpness")
_SOURCES = ("table", "contrast", "autocontrast", "equalize")


def case_of(
    name: str, policy: str, level: int, sign: int, size: tuple[int, ...], interpolation: str
) -> Case:
    """Returns an operation of the strength number `level`; with a `sign` of 0 to the other side.

    Operations whose strength has no sign ignore it. The size is the pictures' height and width.
    """
    strength = float(strengths(name, policy)[level])
    if name.startswith("translate") and policy != "trivial_augment_wide":
        strength *= size[1 if name.endswith("x") else 0]
    if name in _SIGNED:
        strength *= 2 * sign - 1
    table = {
        "brightness": lambda: pixels.brightness_table(1 + strength),
        "posterize": lambda: pixels.posterize_table(strength),
        "solarize": lambda: pixels.solarize_table(strength),
        "invert": lambda: pixels.solarize_table(0),
    }.get(name, lambda: pixels.VALUES.astype(np.uint8))
    six = _WARPS[name](strength, *size) if name in _WARPS else (1, 0, 0, 0, 1, 0)
    part = "warp" if name in _WARPS else name if name in _PARTS else "look up"
    return Case(
        part=np.int32(_PARTS.index(part)),
        source=np.int32(_SOURCES.index(name) if name in _SOURCES else 0),
        table=table(),
        numbers=pixels.warp_numbers(six, interpolation),
        factor=np.float32(1 + strength),
    )


def _cases(
    names: Sequence[str], policy: str, levels: Sequence[int], size: tuple[int, ...], how: str
) -> Case:
    """Returns a row for each name, each level and each sign, in this order."""
    every = itertools.product(names, levels, (0, 1))
    rows = [case_of(name, policy, level, sign, size, how) for name, level, sign in every]
    return jax.tree.map(lambda *values: jnp.asarray(np.stack(values)), *rows)


def _apply(
    images: UInt8[Array, "b h w c"],
    rows: Int[Array, "b n"],
    cases: Case,
    interpolation: str,
    fill: int,
) -> UInt8[Array, "b h w c"]:
    """Applies to each picture the operations of its rows of cases, one after another."""

    def change(image: Array, row: Array) -> Array:
        one = jax.tree.map(lambda values: values[row], cases)
        return apply(image, one, interpolation, fill)

    changed, _ = lax.scan(
        lambda before, row: (pixels.each(change, before, row, selects=True), None), images, rows.T
    )
    return changed


def apply(
    image: UInt8[Array, "h w c"], case: Case, interpolation: str, fill: int
) -> UInt8[Array, "h w c"]:
    """Applies the operation of a case to a picture."""
    parts = (
        lambda: pixels.look_up(image, _table(image, case)),
        lambda: pixels.warp(image, case.numbers, interpolation, fill),
        lambda: pixels.color(image, case.factor),
        lambda: pixels.sharpness(image, case.factor),
    )  # in the order of _PARTS
    return lax.switch(case.part, parts)


def _table(image: UInt8[Array, "h w c"], case: Case) -> UInt8[Array, "c 256"]:
    sources = (
        lambda: jnp.tile(case.table, (image.shape[-1], 1)),
        lambda: pixels.contrast_table(image, case.factor),
        lambda: pixels.autocontrast_table(image),
        lambda: pixels.equalize_table(image, wanted=case.source == _SOURCES.index("equalize")),
    )  # in the order of _SOURCES
    return lax.switch(case.source, sources)
