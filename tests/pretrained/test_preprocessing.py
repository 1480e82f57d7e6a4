"""Pictures are preprocessed as by the authors of the weights; ImageNet classes have names."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from mnv2.data import Pixels, eval_image
from mnv2.pretrained import Preprocessing, imagenet
from mnv2.pretrained.slim import SLIM
from mnv2.pretrained.torch import TIMM_V2, TORCHVISION, TORCHVISION_2


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
    pixels = Pixels(3, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    preprocess = Preprocessing(mean=pixels.mean, std=pixels.std)
    prediction = preprocess(np.asarray(preprocess.crop_and_resize(pictures, (28, 28))))
    training = eval_image(tf.constant(pictures), size=(28, 28), pixels=pixels)
    np.testing.assert_allclose(prediction, training, atol=1e-5)


def test_the_imagenet_classes_have_their_usual_numbers():
    names = imagenet.class_names(1000)
    assert [names[i] for i in (0, 207, 281, 999)] == [
        "tench", "golden retriever", "tabby", "toilet tissue",
    ]  # fmt: skip
    assert len(set(names)) == 1000
    assert imagenet.class_names(1001)[1:] == names
    assert imagenet.class_names(10) is None
    assert list(imagenet.synsets()) == sorted(imagenet.synsets())
