"""What a network sees of a picture in evaluation: as the authors of weights have it, everywhere."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2.data import eval_view
from mnv2.pretrained.preprocessing import METHODS

# Its own size, one side of it, smaller, larger, portrait, odd, and very long ones.
SIZES = [
    *((28, 28), (28, 40), (9, 7), (64, 48), (301, 200), (29, 31), (1, 1)),
    *((3, 400), (400, 3), (28, 1000)),
]


def smooth_picture(height, width):
    small = np.random.default_rng(0).uniform(0, 255, (9, 9, 3))
    return np.asarray(tf.cast(tf.image.resize(small, (height, width)), tf.uint8))


@pytest.mark.parametrize("target", [(28, 28), (20, 36)])
@pytest.mark.parametrize("method", METHODS)
def test_a_view_is_the_same_eagerly_and_in_a_graph_that_knows_no_sizes(method, target):
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in (*SIZES, target)]
    crop = 0.9 if method == "mnv2" else 0.875

    def view(picture):
        return eval_view(picture, target, 1, method=method, crop=crop)

    unknown = tf.TensorSpec((None, None, 3), tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: iter(pictures), output_signature=unknown)
    for picture, in_graph in zip(pictures, dataset.map(view), strict=True):
        alone, of_batch = view(picture), view(picture[None])[0]
        assert alone.shape == (*target, 1)
        assert alone.dtype == in_graph.dtype == (tf.uint8 if method == "mnv2" else tf.float32)
        np.testing.assert_array_equal(alone, in_graph)
        np.testing.assert_array_equal(alone, of_batch)


def test_pictures_of_the_right_size_are_unchanged():
    picture = smooth_picture(28, 28)
    np.testing.assert_array_equal(eval_view(picture, (28, 28)), picture)
    gray = np.repeat(picture[..., :1], 3, -1)  # as a gray file is decoded
    np.testing.assert_array_equal(eval_view(gray, (28, 28), 1), picture[..., :1])


@pytest.mark.parametrize("size", [(301, 256), (180, 333), (224, 224), (90, 700)])
@pytest.mark.parametrize(
    ("method", "shorter", "filter"),
    [
        ("bilinear", 256, Image.Resampling.BILINEAR),
        ("bilinear", 232, Image.Resampling.BILINEAR),
        ("bicubic", 256, Image.Resampling.BICUBIC),
    ],
)
def test_the_shorter_side_is_resized_and_the_centre_cropped_as_in_pil(
    method, shorter, filter, size
):
    picture = smooth_picture(*size)
    height, width = (shorter * side // min(size) for side in size)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), filter))
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = resized[top : top + 224, left : left + 224].astype(np.float32)
    ours = eval_view(picture, (224, 224), method=method, crop=224 / shorter)
    assert ours.shape == (224, 224, 3)
    assert np.abs(expected - ours).max() <= 1  # of 255, because of rounding to 8 bits


@pytest.mark.parametrize("target", [(96, 192), (192, 96)])
@pytest.mark.parametrize("size", [(120, 120), (60, 300), (300, 60), (48, 96)])
def test_a_size_that_is_not_square_is_covered_and_keeps_the_proportions(size, target):
    picture = smooth_picture(*size)
    scale = max(side / 0.875 / own for side, own in zip(map(float, target), size, strict=True))
    height, width = (int(scale * own + 1e-9) for own in size)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), Image.BILINEAR))
    top, left = round((height - target[0]) / 2), round((width - target[1]) / 2)
    expected = resized[top : top + target[0], left : left + target[1]].astype(np.float32)
    ours = eval_view(picture, target, method="bilinear")
    assert np.abs(expected - ours).mean() < 2  # timm and Pillow round the sizes in other ways


def test_slim_crops_the_centre_and_resizes_it_on_the_grid_of_tensorflow_1():
    """On that grid, halving the size takes every second pixel of the crop."""
    picture = smooth_picture(32, 64)
    resized = eval_view(picture, (14, 28), method="slim")
    np.testing.assert_array_equal(resized, picture[2:30:2, 4:60:2])


@pytest.mark.parametrize(
    ("method", "filter"),
    [("pillow", Image.Resampling.BILINEAR), ("nearest", Image.Resampling.NEAREST)],
)
@pytest.mark.parametrize("size", [(301, 200), (20, 30)])
def test_a_whole_picture_is_resized_as_by_pillow(method, filter, size):
    picture = smooth_picture(*size)
    expected = np.asarray(Image.fromarray(picture).resize((48, 64), filter)).astype(np.float32)
    ours = eval_view(picture, (64, 48), method=method)
    assert np.abs(expected - ours).max() <= (method == "pillow")  # of 255: rounding to 8 bits


@pytest.mark.parametrize(
    ("size", "same_as"), [((128, 128), "tensorflow"), ((130, 64), "pillow"), ((9, 9), "tensorflow")]
)
def test_a_users_picture_is_antialiased_if_it_shrinks_to_less_than_half(size, same_as):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours, same, tensorflow = (
        np.asarray(eval_view(picture, (64, 64), method=method))
        for method in ("keras", same_as, "tensorflow")
    )
    np.testing.assert_array_equal(ours, same)
    np.testing.assert_array_equal(tensorflow, tf.image.resize(picture, (64, 64)))
