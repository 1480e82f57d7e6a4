import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.ops.platforms import PLAIN, traced_for
from mnv2.preprocess.simple import _FULL, _in_order, flip, label_noise, with_fill
from mnv2.preprocess.text import OPERATIONS, parse
from mnv2.runtime.errors import UserError
from tests.preprocess.test_pixels import photograph

TEXTS = ("flip", "pad_crop(3)", "erase(0.7, fill=(1, 2, 3))", "distort_color(fast=False)")


def keys(count):
    return jax.random.split(jax.random.key(5), count)


def many(picture, count=400):
    return jnp.broadcast_to(picture, (count, *picture.shape))


@functools.cache
def compiled(text, platform):
    call = parse(text, "test").calls[0]

    def change(images, keys):
        with traced_for(platform):
            return call(images, keys)

    return jax.jit(change)


def changed(text, images, platform="cpu", order=slice(None)):
    """Returns images changed by the operation of a text, each with a key of its own."""
    result = np.asarray(compiled(text, platform)(images[order], keys(len(images))[order]))
    assert result.dtype == np.uint8
    assert result.shape == images.shape
    return result


@pytest.mark.parametrize("text", TEXTS)
def test_what_happens_to_a_picture_depends_on_its_key_and_pixels_alone(text):
    images = np.stack([photograph()[9 * i : 9 * i + 20, 100:125] for i in range(12)])
    results = changed(text, images)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(changed(text, images, order=order), results[order])
    off = np.abs(changed(text, images, PLAIN).astype(int) - results)
    assert off.max() <= ("color" in text)  # compilers may round sums and products differently
    assert off.mean() < 1e-3
    assert (results != images).any((1, 2, 3)).sum() > 3


def test_half_of_the_pictures_are_mirrored_left_to_right():
    picture = np.arange(12, dtype=np.uint8).reshape(2, 6, 1)
    results = changed("flip", many(picture))
    mirrored = (results == picture[:, ::-1]).all((1, 2, 3))
    assert 150 < mirrored.sum() < 250
    np.testing.assert_array_equal(results[~mirrored], many(picture)[: (~mirrored).sum()])
    np.testing.assert_array_equal(flip(many(picture, 3), keys(3), 0.0), many(picture, 3))


def test_a_crop_of_the_padded_picture_is_anywhere_equally_often():
    picture = np.arange(1, 21, dtype=np.uint8).reshape(4, 5, 1)
    padded = np.pad(picture, ((2, 2), (2, 2), (0, 0)))
    crops = {padded[y : y + 4, x : x + 5].tobytes(): (y, x) for y in range(5) for x in range(5)}
    places = [crops[result.tobytes()] for result in changed("pad_crop(2)", many(picture, 2000))]
    _, counts = np.unique(places, axis=0, return_counts=True)
    assert len(counts) == 25
    assert ((counts - 80) ** 2 / 80).sum() < 24 + 4 * np.sqrt(48)


def test_an_erased_rectangle_has_the_area_and_aspect_of_the_paper():
    white = np.full((60, 80, 3), 255, np.uint8)
    areas, centres = [], []
    for result in changed("erase(0.5, fill=(1, 2, 3))", many(white)):
        holes = (result != 255).any(-1)
        if not holes.any():
            continue
        np.testing.assert_array_equal(np.unique(result[holes], axis=0), [[1, 2, 3]])
        rows, columns = np.flatnonzero(holes.any(1)), np.flatnonzero(holes.any(0))
        assert len(rows) * len(columns) == holes.sum()  # a rectangle
        assert 0.25 < len(rows) / len(columns) < 4
        areas.append(holes.mean())
        centres.append((rows.mean() - 29.5, columns.mean() - 39.5))
    assert 160 < len(areas) < 240  # half of 400
    assert 0.015 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.34
    assert 0.16 < np.mean(areas) < 0.19
    assert np.abs(np.mean(centres, 0)).max() < 3


def test_what_is_erased_becomes_the_mean_of_pixels_if_the_text_has_no_fill():
    filled = with_fill(parse("flip|erase(1)|erase(1, fill=(7, 8, 9))", "test"), (0.5, 0.2, 1.0))
    hash(filled)
    assert [call["fill"] for call in filled.calls[1:]] == [(128, 51, 255), (7, 8, 9)]
    images = jnp.zeros((1, 30, 30, 3), jnp.uint8)
    result = np.asarray(jax.jit(filled.calls[1].__call__)(images, keys(1)))
    np.testing.assert_array_equal(result[result.any(-1)][0], (128, 51, 255))
    assert parse("erase(fill=[1, 2, 3])", "test").calls[0]["fill"] == (1, 2, 3)
    with pytest.raises(UserError, match="fill of erase must be a whole number, 0 to 255, got 300"):
        parse("erase(fill=(1, 300, 3))", "test")


@pytest.mark.parametrize(("fast", "channels"), [(True, 3), (False, 3), (False, 1)])
def test_colours_are_distorted_within_the_limits_of_slim(fast, channels):
    """slim adds at most 32/255 to all values, and multiplies distances to gray by 0.5 to 1.5."""
    results = changed(f"distort_color({fast})", many(np.full((4, 4, channels), 100, np.uint8)))
    shifts = results.astype(int) - 100
    assert not np.ptp(shifts, axis=(1, 2, 3)).any()  # gray stays gray, in any saturation and hue
    assert -32 <= shifts.min() < -29
    assert 29 < shifts.max() <= 32


def test_the_orders_are_those_of_slim():
    assert [order[0] for order in _FULL] == ["brightness", "saturation", "contrast", "hue"]
    assert all(len(set(order)) == 4 for order in _FULL)


def test_colours_are_changed_as_their_names_say():
    image = np.random.default_rng(0).uniform(0, 1, (5, 4, 3)).astype(np.float32)
    brightness, saturation, hue, contrast = 0.1, 1.4, -0.15, 0.7
    amounts = jnp.array((brightness, saturation, hue, contrast))
    changed = jax.jit(functools.partial(_in_order, ("contrast", "hue", "saturation", "brightness")))
    result = changed(image, amounts)
    expected = (image - image.mean((0, 1))) * contrast + image.mean((0, 1))
    for pixel in expected.reshape(-1, 3):
        h, s, v = colorsys.rgb_to_hsv(*pixel.tolist())
        pixel[:] = colorsys.hsv_to_rgb((h + hue) % 1, min(s * saturation, 1), v)
    np.testing.assert_allclose(result, expected + brightness, atol=1e-5)


def test_a_noisy_label_is_any_other_class_and_fixed_for_an_example():
    noisy = jax.jit(functools.partial(label_noise, classes=5, probability=0.3))
    labels = jnp.full(5000, 3, jnp.int32)
    result = np.asarray(noisy(labels, keys(5000)))
    counts = np.bincount(result, minlength=5)
    assert abs(counts[3] - 3500) < 4 * np.sqrt(5000 * 0.3 * 0.7)
    assert np.abs(np.delete(counts, 3) - 375).max() < 4 * np.sqrt(375)
    order = np.random.default_rng(0).permutation(5000)
    np.testing.assert_array_equal(noisy(labels, keys(5000)[order]), result[order])
    assert result.dtype == np.int32


def test_all_arguments_are_checked():
    for name in ("flip", "pad_crop", "erase", "distort_color", "label_noise"):
        assert OPERATIONS[name].defaults.keys() == OPERATIONS[name].checks.keys()
    with pytest.raises(UserError, match="probability of flip must be at least 0 and at most 1"):
        parse("flip(1.5)", "test")
