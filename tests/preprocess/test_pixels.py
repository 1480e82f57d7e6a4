"""Each operation against Pillow, which torchvision calls."""

import functools

import jax
import jax.numpy as jnp
import matplotlib.cbook
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from mnv2.preprocess import pixels

AFFINE = Image.Transform.AFFINE
FACTORS = (0.0, 0.1, 0.55, 1.0, 1.3, 1.99)
SHAPES = ((33, 47, 3), (33, 47, 1), (2, 5, 3), (1, 1, 1))


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


@functools.partial(jax.jit, static_argnames="name")
def changed(name, images, strengths):
    """Returns images changed by an operation: for each strength, for each image."""
    operation = getattr(pixels, name)
    of_all = jax.vmap(jax.vmap(operation, (0, None)), (None, 0))
    if name.endswith("_table"):
        operation = jax.vmap(jax.vmap(pixels.look_up), (None, 0))
        return operation(images, of_all(images, strengths))
    return of_all(images, strengths)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["color", "contrast", "sharpness"])
def test_an_enhancement_is_that_of_pillow(name, shape):
    ours = {"contrast": "contrast_table"}.get(name, name)
    results = changed(ours, pictures(shape), jnp.array(FACTORS, jnp.float32))
    for factor, result in zip(FACTORS, results, strict=True):
        enhancement = getattr(ImageEnhance, name.capitalize())
        expected = pillow(lambda x, f=factor, e=enhancement: e(x).enhance(f), shape)
        np.testing.assert_array_equal(result, expected, f"factor {factor}")


def test_tables_of_values_are_those_of_pillow():
    values = np.arange(256, dtype=np.uint8)[None]

    def check(table, change):
        np.testing.assert_array_equal(table, np.array(change(Image.fromarray(values)))[0])

    for factor in np.linspace(0, 1.99, 63):
        check(
            pixels.brightness_table(factor),
            lambda x, f=factor: ImageEnhance.Brightness(x).enhance(f),
        )
    for bits in range(1, 9):
        check(pixels.posterize_table(bits), lambda x, b=bits: ImageOps.posterize(x, b))
    for threshold in (0.0, 128, 200.3, 255.0):
        check(pixels.solarize_table(threshold), lambda x, t=threshold: ImageOps.solarize(x, t))
    check(pixels.solarize_table(0), ImageOps.invert)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equalized_pictures_are_those_of_pillow_with_either_way_to_count(shape):
    images = pictures(shape)
    both = jax.jit(jax.vmap(lambda x: (pixels.counts_of(x), pixels.scattered_counts(x))))
    channels = np.moveaxis(images, -1, 1).reshape(*images.shape[::3], -1)
    expected = [[np.bincount(x, minlength=256) for x in image] for image in channels]
    for counts in both(images):
        np.testing.assert_array_equal(counts, expected)
    look_up = jax.jit(jax.vmap(lambda x: pixels.look_up(x, pixels.equalize_table(x))))
    np.testing.assert_array_equal(look_up(images), pillow(ImageOps.equalize, shape))


def test_stretched_contrast_is_that_of_pillow_for_any_darkest_and_lightest_value():
    rng = np.random.default_rng(0)
    limits = np.sort(rng.integers(0, 256, (3000, 2, 1), dtype=np.uint8), axis=1)
    limits[:255, 0], limits[:255, 1, 0] = 1, range(1, 256)
    images = np.clip(np.arange(256, dtype=np.uint8), limits[:, 0], limits[:, 1])
    images = images.reshape(1000, 16, 16, 3, order="F")  # three channels with limits of their own
    images = images[:, :, :, [1, 0, 2]]
    results = jax.jit(jax.vmap(lambda x: pixels.look_up(x, pixels.autocontrast_table(x))))(images)
    for image, result in zip(images, results, strict=True):
        np.testing.assert_array_equal(result, ImageOps.autocontrast(Image.fromarray(image)))


def warped(sixes, interpolation, shape, fill=0):
    """Returns the pictures of a shape, transformed with each of some six numbers."""
    numbers = np.stack([pixels.warp_numbers(six, interpolation) for six in sixes])
    warp = functools.partial(pixels.warp, interpolation=interpolation, fill=fill)
    return jax.jit(jax.vmap(jax.vmap(warp, (0, None)), (None, 0)))(pictures(shape), numbers)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=str)
def test_shears_and_shifts_are_those_of_pillow(interpolation, shape):
    levels = np.float32([-0.99, -0.13, 0.04, 0.2, 0.3, 0.33, 0.7]).astype(float)
    sixes = [f(level) for level in levels for f in (pixels.shear_x, pixels.shear_y)]
    sixes.append(pixels.translate(5.7, -3.2))
    assert sixes[-1] == (1, 0, -5, 0, 1, 3)
    kind = getattr(Image.Resampling, interpolation.upper())
    for six, result in zip(sixes, warped(sixes, interpolation, shape), strict=True):
        expected = pillow(lambda x, six=six: x.transform(x.size, AFFINE, six, kind), shape)
        np.testing.assert_array_equal(result, expected, f"{six}")


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("shape", "fill"), [(SHAPES[0], 9), (SHAPES[1], 0)], ids=str)
def test_turns_are_those_of_pillow(interpolation, shape, fill):
    degrees = [-135, -90, -30, 0, 7.3, 9, 45, 180]
    sixes = [pixels.rotate(angle, *shape[:2]) for angle in degrees]
    results = np.asarray(warped(sixes, interpolation, shape, fill)).astype(int)
    kind = getattr(Image.Resampling, interpolation.upper())
    color = fill if shape[-1] == 1 else (fill,) * 3
    off = np.abs(
        results
        - [pillow(lambda x, d=d: x.rotate(d, kind, fillcolor=color), shape) for d in degrees]
    )
    assert off.max() <= (interpolation == "bilinear")
    assert off.mean() < 2e-3  # of photographs with more pixels a twentieth of that
