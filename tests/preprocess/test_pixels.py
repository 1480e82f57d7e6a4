"""Each operation against Pillow, which torchvision calls."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mnv2.ops.platforms import PLAIN, traced_for
from mnv2.preprocess import pixels

AFFINE = Image.Transform.AFFINE
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.3, 1.99)
STRENGTHS = np.float32((-1.0, -0.9, -0.45, 0.0, 0.3, 0.99))
SHAPES = ((33, 47, 3), (33, 47, 1), (2, 1, 3))


@functools.cache
def photograph():
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file).convert("RGB"))


@functools.cache
def pictures(shape):
    """Photographs, noise, one colour, and little contrast."""
    height, width, channels = shape
    rng, photo = np.random.default_rng(0), photograph()
    colour = [
        np.array(Image.fromarray(photo).resize((width, height))),
        photo[50 : 50 + height, 30 : 30 + width],
        rng.integers(0, 256, (height, width, 3)),
        np.full((height, width, 3), 77),
        rng.integers(100, 103, (height, width, 3)),
    ]
    return np.stack(colour).astype(np.uint8)[..., :channels]


def pillow(change, shape):
    """Returns what a function of Pillow's makes of the pictures of a shape."""
    gray = shape[-1] == 1
    found = [change(Image.fromarray(x[..., 0] if gray else x)) for x in pictures(shape)]
    return np.stack([np.array(x) for x in found]).reshape(-1, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_enhanced_and_equalized_pictures_are_those_of_pillow(shape):
    images = pictures(shape)
    names = ("brightness", "color", "contrast", "sharpness", "equalize")

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    def changed(x, strength):
        return [
            by_table(name, x, strength)
            if name in pixels.TABLES
            else getattr(pixels, name)(x, strength)
            for name in names
        ]

    for strength in STRENGTHS:
        results = dict(zip(names, changed(images, strength), strict=True))
        for name in names[:-1]:
            enhancement, factor = getattr(ImageEnhance, name.capitalize()), float(1 + strength)
            expected = pillow(lambda x, f=factor, e=enhancement: e(x).enhance(f), shape)
            np.testing.assert_array_equal(results[name], expected, f"{name} {factor}")
    np.testing.assert_array_equal(results["equalize"], pillow(ImageOps.equalize, shape))


def by_table(name, image, strength):
    """Returns a picture changed by an operation on values."""
    table = jnp.broadcast_to(pixels.TABLES[name](image, strength, True), (image.shape[-1], 256))
    return pixels.look_up(image, table.astype(jnp.uint8))


def test_tables_of_values_are_those_of_pillow():
    values = np.arange(256, dtype=np.uint8)[None]

    def check(name, strength, change):
        table = pixels.TABLES[name](jnp.asarray(values)[..., None], float(strength), True)
        np.testing.assert_array_equal(table, np.array(change(Image.fromarray(values)))[0])

    for strength in np.float32(np.linspace(-1, 0.99, 23)):
        factor = float(1 + strength)
        check("brightness", strength, lambda x, f=factor: ImageEnhance.Brightness(x).enhance(f))
    for bits in range(1, 9):
        check("posterize", bits, lambda x, b=bits: ImageOps.posterize(x, b))
    for threshold in (0.0, 128, 200.3, 255.0):
        check("solarize", threshold, lambda x, t=threshold: ImageOps.solarize(x, t))
    check("invert", 0.0, ImageOps.invert)


def test_stretched_contrast_is_that_of_pillow_for_any_darkest_and_lightest_value():
    rng = np.random.default_rng(0)
    limits = np.sort(rng.integers(0, 256, (3000, 2, 1), dtype=np.uint8), axis=1)
    limits[:255, 0], limits[:255, 1, 0] = 1, range(1, 256)
    images = np.clip(np.arange(256, dtype=np.uint8), limits[:, 0], limits[:, 1])
    images = images.reshape(1000, 16, 16, 3, order="F")  # three channels with limits of their own
    images = images[:, :, :, [1, 0, 2]]
    results = jax.jit(jax.vmap(lambda x: by_table("autocontrast", x, 0.0)))(images)
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result, ImageOps.autocontrast(Image.fromarray(image)))


def numbers(operations, shape, interpolation):
    """Returns the numbers of some warps of pictures of a shape."""
    return np.stack([pixels.warp_numbers(*one, shape[:2], interpolation) for one in operations])


def warped(operations, interpolation, shape, fill=0):
    """Returns the pictures of a shape, transformed with each of some operations."""
    warp = functools.partial(pixels.warp, interpolation=interpolation, fill=fill)
    many = jax.jit(jax.vmap(jax.vmap(warp, (0, None)), (None, 0)))
    return many(pictures(shape), numbers(operations, shape, interpolation))


@pytest.mark.parametrize(
    ("interpolation", "shape"),
    [("nearest", SHAPES[0]), ("bilinear", SHAPES[0]), ("bilinear", SHAPES[2])],
    ids=str,
)
def test_shears_and_shifts_are_those_of_pillow(interpolation, shape):
    levels = np.float32([-0.99, -0.13, 0.04, 0.2, 0.3, 0.33, 0.7]).astype(float)
    sixes = {("shear_x", level): (1, level, 0, 0, 1, 0) for level in levels}
    sixes |= {("shear_y", level): (1, 0, 0, level, 1, 0) for level in levels}
    sixes |= {("translate_x", 5.7): (1, 0, -5, 0, 1, 0), ("translate_y", -3.2): (1, 0, 0, 0, 1, 3)}
    kind = getattr(Image.Resampling, interpolation.upper())
    for six, result in zip(sixes.values(), warped(sixes, interpolation, shape), strict=True):
        expected = pillow(lambda x, six=six: x.transform(x.size, AFFINE, six, kind), shape)
        np.testing.assert_array_equal(result, expected, f"{six}")


@pytest.mark.parametrize(
    ("interpolation", "shape", "fill"),
    [("nearest", SHAPES[0], 9), ("bilinear", SHAPES[0], 0), ("bilinear", SHAPES[1], 9)],
    ids=str,
)
def test_turns_are_those_of_pillow(interpolation, shape, fill):
    degrees = [-135, -90, -30, 0, 7.3, 9, 45, 180]
    results = warped([("rotate", angle) for angle in degrees], interpolation, shape, fill)
    kind = getattr(Image.Resampling, interpolation.upper())
    color = fill if shape[-1] == 1 else (fill,) * 3
    off = np.abs(
        np.asarray(results).astype(int)
        - [pillow(lambda x, d=d: x.rotate(d, kind, fillcolor=color), shape) for d in degrees]
    )
    assert off.max() <= (interpolation == "bilinear")
    assert off.mean() < 2e-3  # of photographs with more pixels a twentieth of that


@pytest.mark.parametrize(
    ("interpolation", "shape"),
    [("bilinear", (130, 75, 3)), ("nearest", (50, 120, 1)), ("bilinear", (3, 2, 3))],
    ids=str,
)
def test_products_find_what_gathers_find(interpolation, shape):
    """Turns, and all that moves rows or columns; pictures of several tiles and of one."""
    picture = jnp.asarray(photograph()[100 : 100 + shape[0], 60 : 60 + shape[1], : shape[2]])
    table = jnp.asarray(np.random.default_rng(0).integers(0, 256, (shape[2], 256), np.uint8))
    warps = [("rotate", angle) for angle in (-135, -30, 12.3, 90)]
    warps += [(name, level) for level in (-0.99, 0.3) for name in ("shear_x", "shear_y")]
    warps += [("translate_x", right) for right in (0, 7, 400.5)] + [("translate_y", -9)]
    of_all = numbers(warps, shape, interpolation)

    def results(platform):
        with traced_for(platform):
            many = functools.partial(
                jax.lax.map, lambda x: pixels.warp(picture, x, interpolation, 7)
            )
            return jax.jit(lambda: (many(jnp.asarray(of_all)), pixels.look_up(picture, table)))()

    jax.tree.map(np.testing.assert_array_equal, results("tpu"), results(PLAIN))
