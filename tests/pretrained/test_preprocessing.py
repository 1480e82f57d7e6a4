"""Pictures are preprocessed as by the authors of the weights; ImageNet classes have names."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2.data import eval_image
from mnv2.pretrained import Preprocessing, imagenet
from mnv2.pretrained.preprocessing import METHODS, size_in_name
from mnv2.pretrained.slim import SLIM
from mnv2.pretrained.torch import TIMM_V2, TORCHVISION, TORCHVISION_2
from mnv2.runtime.errors import UserError


def smooth_picture(height, width):
    small = np.random.default_rng(0).uniform(0, 255, (9, 9, 3))
    return np.asarray(tf.cast(tf.image.resize(small, (height, width)), tf.uint8))


@pytest.mark.parametrize("size", [(301, 256), (180, 333), (224, 224)])
@pytest.mark.parametrize(
    ("preprocess", "shorter", "filter"),
    [
        (TORCHVISION, 256, Image.Resampling.BILINEAR),
        (TORCHVISION_2, 232, Image.Resampling.BILINEAR),
        (TIMM_V2, 256, Image.Resampling.BICUBIC),
    ],
)
def test_the_shorter_side_is_resized_and_the_centre_cropped_as_in_pil(
    preprocess, shorter, filter, size
):
    picture = smooth_picture(*size)
    height, width = (shorter * side // min(size) for side in size)
    resized = np.asarray(Image.fromarray(picture).resize((width, height), filter))
    top, left = round((height - 224) / 2), round((width - 224) / 2)
    expected = resized[top : top + 224, left : left + 224].astype(np.float32)
    ours = preprocess.crop_and_resize(picture, (224, 224))
    assert ours.shape == (224, 224, 3)
    assert np.abs(expected - ours).max() <= 1  # of 255, because of rounding to 8 bits


def test_slim_crops_the_centre_and_resizes_it_on_the_grid_of_tensorflow_1():
    """On that grid, halving the size takes every second pixel of the crop."""
    picture = smooth_picture(32, 64)
    resized = SLIM.crop_and_resize(picture, (14, 28))
    np.testing.assert_array_equal(resized, picture[2:30:2, 4:60:2])


def test_pictures_of_the_right_size_are_unchanged():
    picture = smooth_picture(28, 28)
    np.testing.assert_array_equal(Preprocessing().crop_and_resize(picture, (28, 28)), picture)


@pytest.mark.parametrize("size", [(28, 28), (40, 50)])
def test_evaluation_in_training_and_prediction_have_the_same_input(size):
    pictures = smooth_picture(*size)[None]
    preprocess = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    prediction = preprocess(np.asarray(preprocess.crop_and_resize(pictures, (28, 28))))
    training = preprocess(eval_image(tf.constant(pictures), size=(28, 28), channels=3).numpy())
    np.testing.assert_allclose(prediction, training, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "filter"),
    [("pillow", Image.Resampling.BILINEAR), ("nearest", Image.Resampling.NEAREST)],
)
@pytest.mark.parametrize("size", [(301, 200), (20, 30)])
def test_a_whole_picture_is_resized_as_by_pillow(method, filter, size):
    picture = smooth_picture(*size)
    expected = np.asarray(Image.fromarray(picture).resize((48, 64), filter)).astype(np.float32)
    ours = Preprocessing(method, 1.0).crop_and_resize(picture, (64, 48))
    assert np.abs(expected - ours).max() <= (method == "pillow")  # of 255: rounding to 8 bits


@pytest.mark.parametrize(
    ("size", "same_as"), [((128, 128), "tensorflow"), ((130, 64), "pillow"), ((9, 9), "tensorflow")]
)
def test_a_users_picture_is_antialiased_if_it_shrinks_to_less_than_half(size, same_as):
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours, same, tensorflow = (
        np.asarray(Preprocessing(method, 1.0).crop_and_resize(picture, (64, 64)))
        for method in ("keras", same_as, "tensorflow")
    )
    np.testing.assert_array_equal(ours, same)
    np.testing.assert_array_equal(tensorflow, tf.image.resize(picture, (64, 64)))


def test_another_way_to_resize_brings_its_own_crop():
    ours, theirs = Preprocessing(), TORCHVISION_2
    assert [ours.with_method(m).crop for m in METHODS] == [0.875] * 4 + [1.0] * 4
    assert theirs.with_method("bicubic").crop == theirs.crop
    assert ours.with_method("pillow").with_method("slim").crop == 0.875
    with pytest.raises(UserError, match=r"unknown --resize 'pilow': did you mean 'pillow'\?"):
        ours.with_method("pilow")


def test_the_view_and_the_scaling_are_described_in_a_line_each():
    assumed = Preprocessing("pillow", 1.0, (0.1, 0.2, 0.3), (0.5,), assumed=True)
    assert "whole picture stretched to 96 x 64" in assumed.describe_view((96, 64))
    assert "mean 0.1, 0.2, 0.3, std 0.5 (assumed" in assumed.describe_pixels()
    assert "central 87.5 % stretched to 28 x 28" in Preprocessing().describe_view((28, 28))
    assert "as the weights say" in Preprocessing().describe_pixels()


def test_the_names_of_published_files_tell_the_size_of_pictures():
    for name, size in (
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96.h5", 96),
        ("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.4_224_no_top.h5", 224),
        ("mobilenet_2_5_128_tf.h5", 128),
        ("mobilenet_7_5_160_tf_no_top.h5", 160),
        ("mobilenet_v2_0.35_192.ckpt", 192),
    ):
        assert size_in_name(name) == (size, size)
    for name in ("model.ckpt-96", "weights_96.h5", "mobilenet_v2_1.0_2240.h5", "mobilenet_v2.h5"):
        assert size_in_name(name) is None


def test_the_imagenet_classes_have_their_usual_numbers():
    names = imagenet.class_names(1000)
    assert [names[i] for i in (0, 207, 281, 999)] == [
        "tench", "golden retriever", "tabby", "toilet tissue",
    ]  # fmt: skip
    assert len(set(names)) == 1000
    assert imagenet.class_names(1001)[1:] == names
    assert imagenet.class_names(10) is None
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
