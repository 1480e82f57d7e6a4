"""Policies: which operations a training picture goes through, and how strong they are.

They are those of torchvision's RandAugment, TrivialAugmentWide and AutoAugment.
"""

import itertools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int

from mnv2.preprocess import pixels
from mnv2.preprocess.pixels import Keys, Picture, Pictures
from mnv2.preprocess.text import PICTURES, Call, operation
from mnv2.runtime.errors import choice, whole

STRENGTHS = 31  # that RandAugment and TrivialAugment divide a range into
_OF_AUTO = 10  # the same for AutoAugment
_WARPS = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_FACTORS = ("brightness", "color", "contrast", "sharpness")
_SIGNED = (*_WARPS, *_FACTORS)  # whose strength may be negative as well
NAMES = ("identity", *_SIGNED, "posterize", "solarize", "autocontrast", "equalize")
_ALL = (*NAMES, "invert")  # of AutoAugment; the others have NAMES
_KINDS = (*pixels.TABLES, "warp", "color", "sharpness")
_CHECKS: dict[str, Any] = {"interpolation": choice(("nearest", "bilinear")), "fill": whole(0, 255)}

type Case = tuple[str, str, int, int]  # policy, operation, number of its strength, sign

# Table 9 of AutoAugment's paper: pairs of operations, each with its probability, and its strength
# of 0 to 9 (0 where it has none).
_PAIRS = """
    posterize 0.4 8 rotate 0.6 9,       solarize 0.6 5 autocontrast 0.6 0,
    equalize 0.8 0 equalize 0.6 0,      posterize 0.6 7 posterize 0.6 6,
    equalize 0.4 0 solarize 0.2 4,      equalize 0.4 0 rotate 0.8 8,
    solarize 0.6 3 equalize 0.6 0,      posterize 0.8 5 equalize 1.0 0,
    rotate 0.2 3 solarize 0.6 8,        equalize 0.6 0 posterize 0.4 6,
    rotate 0.8 8 color 0.4 0,           rotate 0.4 9 equalize 0.6 0,
    equalize 0.0 0 equalize 0.8 0,      invert 0.6 0 equalize 1.0 0,
    color 0.6 4 contrast 1.0 8,         rotate 0.8 8 color 1.0 2,
    color 0.8 8 solarize 0.8 7,         sharpness 0.4 7 invert 0.6 0,
    shear_x 0.6 5 equalize 1.0 0,       color 0.4 0 equalize 0.6 0,
    equalize 0.4 0 solarize 0.2 4,      solarize 0.6 5 autocontrast 0.6 0,
    invert 0.6 0 equalize 1.0 0,        color 0.6 4 contrast 1.0 8,
    equalize 0.8 0 equalize 0.6 0
"""
AUTO_IMAGENET = tuple(
    tuple((name, float(odds), int(level)) for name, odds, level in itertools.batched(words, 3))
    for words in map(str.split, _PAIRS.split(","))
)


@operation(PICTURES, operations=whole(1, 14), strength=whole(0, STRENGTHS - 1), **_CHECKS)
def rand_augment(
    images: Pictures,
    keys: Keys,
    operations: int = 2,
    strength: int = 9,
    interpolation: str = "nearest",
    fill: int = 0,
) -> Pictures:
    """RandAugment: some operations of 14, one after another, of a strength of 0 to 30.

    arXiv 1909.13719; torchvision's RandAugment. What shears, shifts and turns bring in from outside
    of a picture has the value `fill`.
    """
    limits = jnp.array((len(NAMES), 2))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (operations, 2), 0, limits))(keys)
    cases = itertools.product(["rand_augment"], NAMES, [strength], (0, 1))
    return _apply(cases, images, drawn @ jnp.array((2, 1)), interpolation, fill)


@operation(PICTURES, **_CHECKS)
def trivial_augment_wide(
    images: Pictures, keys: Keys, interpolation: str = "nearest", fill: int = 0
) -> Pictures:
    """TrivialAugment, wide: one operation of 14, of any strength.

    arXiv 2103.10158; torchvision's TrivialAugmentWide.
    """
    limits = jnp.array((len(NAMES), STRENGTHS, 2))
    drawn = jax.vmap(lambda key: jax.random.randint(key, (1, 3), 0, limits))(keys)
    cases = itertools.product(["trivial_augment_wide"], NAMES, range(STRENGTHS), (0, 1))
    return _apply(cases, images, drawn @ jnp.array((2 * STRENGTHS, 2, 1)), interpolation, fill)


@operation(PICTURES, **_CHECKS)
def auto_augment(
    images: Pictures, keys: Keys, interpolation: str = "nearest", fill: int = 0
) -> Pictures:
    """AutoAugment: one of the 25 pairs of operations that were found on ImageNet.

    arXiv 1805.09501, table 9; torchvision's AutoAugment.
    """
    first = [[2 * (_OF_AUTO * _ALL.index(name) + level) for name, _, level in pair]
             for pair in AUTO_IMAGENET]  # fmt: skip
    odds = jnp.array([[odds for _, odds, _ in pair] for pair in AUTO_IMAGENET])
    limits = jnp.array((len(AUTO_IMAGENET), 2, 2))

    def drawn(key: Array) -> Array:
        for_choice, for_odds = jax.random.split(key)
        which, *signs = jax.random.randint(for_choice, (3,), 0, limits)
        applied = jax.random.uniform(for_odds, (2,)) <= odds[which]
        return jnp.where(applied, jnp.array(first)[which] + jnp.stack(signs), 0)  # 0: identity

    cases = itertools.product(["auto_augment"], _ALL, range(_OF_AUTO), (0, 1))
    return _apply(cases, images, jax.vmap(drawn)(keys), interpolation, fill)


def largest_shift(call: Call, side: int) -> int:
    """Returns by how many pixels one operation of a policy can shift a picture with this side."""
    if call.name not in ("rand_augment", "trivial_augment_wide"):
        return 0  # AutoAugment's pairs have no shifts
    shifts = strengths("translate_x", call.name)
    wide = call.name == "trivial_augment_wide"
    return int(shifts.max()) if wide else int(float(shifts[call["strength"]]) * side)


def strengths(name: str, policy: str) -> np.ndarray:
    """Returns the strengths of an operation, from the weakest to the strongest.

    Shifts are in pixels for `trivial_augment_wide`, and in parts of the picture's size otherwise.
    """
    wide = policy == "trivial_augment_wide"
    count = _OF_AUTO if policy == "auto_augment" else STRENGTHS
    if name == "posterize":
        dropped = np.arange(count) / ((count - 1) / (6 if wide else 4))
        return 8 - np.round(dropped).astype(np.float32)
    most = {
        **dict.fromkeys(("shear_x", "shear_y"), 0.99 if wide else 0.3),
        **dict.fromkeys(("translate_x", "translate_y"), 32.0 if wide else 150 / 331),
        "rotate": 135.0 if wide else 30.0,
        **dict.fromkeys(_FACTORS, 0.99 if wide else 0.9),
    }
    start, end = (255, 0) if name == "solarize" else (0, most.get(name, 0))
    # As torch.linspace, from both ends to the middle: half of 32 is then a little less than 16, and
    # moves a picture by 15 pixels.
    numbers = np.arange(count)
    step = np.float64(np.float32((end - start) / (count - 1)))  # rounded once more only at the end
    upwards, downwards = start + step * numbers, end - step * (count - 1 - numbers)
    return np.where(numbers < count // 2, upwards, downwards).astype(np.float32)


def case_of(
    policy: str, name: str, level: int, sign: int, size: tuple[int, ...], interpolation: str
) -> tuple[Any, ...]:
    """Returns an operation of the strength number `level`; with a `sign` of 0 to the other side.

    That is its number in _KINDS, the strength, and numbers of `pixels.warp`. The size is the
    pictures' height and width.
    """
    strength = float(strengths(name, policy)[level])
    if name.startswith("translate") and policy != "trivial_augment_wide":
        strength *= size[1 if name.endswith("x") else 0]
    if name in _SIGNED:
        strength *= 2 * sign - 1
    numbers = pixels.warp_numbers(name, strength, size, interpolation)
    kind = _KINDS.index("warp" if name in _WARPS else name)
    return np.int32(kind), np.float32(strength), numbers


def _apply(
    cases: Iterable[Case], images: Pictures, rows: Int[Array, "b n"], interpolation: str, fill: int
) -> Pictures:
    """Applies to each picture the operations of its rows of cases, one after another."""
    arrays = [case_of(*case, images.shape[1:3], interpolation) for case in cases]
    stacked = [jnp.asarray(np.stack(values)) for values in zip(*arrays, strict=True)]

    def change(image: Array, row: Array) -> Array:
        return apply(image, tuple(values[row] for values in stacked), interpolation, fill)

    def step(before: Array, row: Array) -> tuple[Array, None]:
        return pixels.each(change, before, row, selects=True), None

    return lax.scan(step, images, rows.T)[0]


def apply(image: Picture, case: tuple[Any, ...], interpolation: str, fill: int) -> Picture:
    """Applies the operation of a case to a picture."""
    kind, strength, numbers = case
    shape = (image.shape[-1], 256)
    tables = [
        lambda i=i, f=f: jnp.broadcast_to(f(image, strength, kind == i), shape).astype(jnp.uint8)
        for i, f in enumerate(pixels.TABLES.values())
    ]
    forms = (
        lambda: pixels.look_up(image, lax.switch(kind, tables)),
        lambda: pixels.warp(image, numbers, interpolation, fill),
        lambda: pixels.color(image, strength),
        lambda: pixels.sharpness(image, strength),
    )  # in the order of _KINDS, whose first ones look values up
    return lax.switch(jnp.maximum(kind - len(tables) + 1, 0), forms)
