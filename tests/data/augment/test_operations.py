"""Each operation against Pillow, which torchvision calls."""

import matplotlib.cbook
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from mnv2.data.augment import affine, operations


def photograph():
    with matplotlib.cbook.get_sample_data("grace_hopper.jpg") as file:
        return np.array(Image.open(file).convert("RGB"))


def pictures():
    """Photographs, noise, one colour, little contrast, and nothing but border; also in gray."""
    rng, photo = np.random.default_rng(0), photograph()
    colour = [
        photo[100:196, 120:250],
        photo[50:97, 30:61],
        rng.integers(0, 256, (33, 47, 3), dtype=np.uint8),
        np.full((10, 12, 3), 77, np.uint8),
        rng.integers(100, 103, (20, 20, 3), dtype=np.uint8),
        rng.integers(0, 256, (2, 5, 3), dtype=np.uint8),
    ]
    return [*colour, *(picture[..., :1] for picture in colour)]


def differing(ours, theirs):
    """Returns the number of values that differ from Pillow's; asserts that none does by more."""
    count = 0
    for picture in pictures():
        gray = picture.shape[-1] == 1
        expected = np.array(theirs(Image.fromarray(picture[..., 0] if gray else picture)))
        result = ours(tf.constant(picture)).numpy().reshape(expected.shape)
        difference = np.abs(result.astype(int) - expected)
        assert difference.max() <= 1
        count += np.count_nonzero(difference)
    return count


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.55, 1.0, 1.3, 1.99])
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_an_enhancement_is_that_of_pillow(name, factor):
    ours, theirs = getattr(operations, name), getattr(ImageEnhance, name.capitalize())
    assert not differing(lambda x: ours(x, factor), lambda x: theirs(x).enhance(factor))


def test_operations_on_values_are_those_of_pillow():
    for name in ("autocontrast", "equalize", "invert"):
        assert not differing(getattr(operations, name), getattr(ImageOps, name)), name
    for bits in (1, 2, 4, 8):
        assert not differing(
            lambda x, bits=bits: operations.posterize(x, bits),
            lambda x, bits=bits: ImageOps.posterize(x, bits),
        )
    for threshold in (0.0, 128, 200.3, 255.0):
        assert not differing(
            lambda x, threshold=threshold: operations.solarize(x, threshold),
            lambda x, threshold=threshold: ImageOps.solarize(x, threshold),
        )


@pytest.mark.parametrize(
    ("interpolation", "resampling"),
    [("nearest", Image.Resampling.NEAREST), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_transforms_are_those_of_pillow(interpolation, resampling):
    def check(six, numbers):
        assert not differing(
            lambda x: operations.transform(x, six, interpolation=interpolation),
            lambda x: x.transform(x.size, Image.Transform.AFFINE, numbers, resampling),
        )

    for level in (-0.99, -0.13, 0.3, 0.7):
        check(affine.shear_x(level), (1, level, 0, 0, 1, 0))
        check(affine.shear_y(level), (1, 0, 0, level, 1, 0))
    check(affine.translate(5.7, -3.2), (1, 0, -5, 0, 1, 3))


@pytest.mark.parametrize("degrees", [-135, -90, -30, 0, 7.3, 45, 180])
@pytest.mark.parametrize("fill", [0, 9])
def test_turns_are_those_of_pillow(degrees, fill):
    def count(name):
        return differing(
            lambda x: operations.transform(
                x, affine.rotate(x, degrees), interpolation=name, fill=fill
            ),
            lambda x: x.rotate(
                degrees,
                getattr(Image.Resampling, name.upper()),
                fillcolor=fill if x.mode == "L" else (fill,) * 3,
            ),
        )

    assert not count("nearest")
    assert count("bilinear") < 50  # of 90,000: by one level, from the last digit of a sine


def test_a_graph_computes_what_eager_execution_does():
    picture = tf.constant(pictures()[0])
    for name in ("autocontrast", "equalize"):
        operation = getattr(operations, name)
        compiled = tf.function(operation, input_signature=[tf.TensorSpec((None, None, 3), "uint8")])
        np.testing.assert_array_equal(compiled(picture), operation(picture))
