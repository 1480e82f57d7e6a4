"""From a decoded picture to what a network sees: float32, in [-1, 1] unless told otherwise.

Random choices are functions of a seed pair that the caller derives for each example.
"""

from typing import NamedTuple

import tensorflow as tf

from mnv2.runtime.errors import check_choice

AUGMENTATIONS = ("none", "flip", "crop_flip", "inception")
CENTRAL_CROP = 0.875


class Pixels(NamedTuple):
    """What a network expects of pixels: (pixel in [0, 1] - mean) / std, in so many channels.

    0 channels: as many as the picture has.
    """

    channels: int = 0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)


UNIT_RANGE = Pixels()  # [-1, 1]


def train_image(
    images: tf.Tensor,
    seeds: tf.Tensor,
    *,
    augmentation: str,
    size: tuple[int, int],
    pad: int,
    pixels: Pixels = UNIT_RANGE,
) -> tf.Tensor:
    """A random view, of `size` (height, width), of one picture (h w c, uint8) or of a batch.

    `seeds` is a pair of numbers a picture.

    none       resized where the size differs
    flip       mirrored left to right, half the time
    crop_flip  zero-padded by `pad` pixels, cropped back at a random place, and `flip`
    inception  a random 5 to 100 % of the area, of aspect 3/4 to 4/3, resized, and `flip`
               (slim's inception_preprocessing, without its colour distortion)
    """
    check_choice(augmentation, AUGMENTATIONS, "augmentation")
    if augmentation == "none":
        return normalize(_resize(images, size), pixels)

    def one(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        if augmentation == "inception":
            image = _inception_crop(image, crop_seed)
        image = _resize(image, size)
        if augmentation == "crop_flip":
            padded = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return normalize(image, pixels)

    if images.shape.rank == 3:
        return one(images, seeds)
    return tf.map_fn(lambda pair: one(*pair), (images, seeds), fn_output_signature=tf.float32)


def eval_image(
    image: tf.Tensor, *, size: tuple[int, int], pixels: Pixels = UNIT_RANGE
) -> tf.Tensor:
    """Pictures (... h w c, uint8) at `size`; where resized, their central 87.5 % (slim)."""
    if image.shape[-3:-1] != size:
        image = tf.image.central_crop(image, CENTRAL_CROP)
    return normalize(_resize(image, size), pixels)


def normalize(image: tf.Tensor, pixels: Pixels) -> tf.Tensor:
    """[0, 255] to what the network expects; gray pictures to three channels and back."""
    image = to_channels(tf.cast(image, tf.float32), pixels.channels)
    factor = [255 * std for std in pixels.std]
    return image / factor - [m / s for m, s in zip(pixels.mean, pixels.std, strict=True)]


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Repeats the channel of gray pictures, or takes the luminance of coloured ones."""
    if channels == 3 and image.shape[-1] == 1:
        return tf.image.grayscale_to_rgb(image)
    if channels == 1 and image.shape[-1] == 3:
        return tf.image.rgb_to_grayscale(image)
    return image


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    return image if image.shape[-3:-1] == size else tf.image.resize(image, size)


def _inception_crop(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        whole,
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.05, 1.0),
        max_attempts=100,
    )
    crop = tf.slice(image, begin, size)
    crop.set_shape((None, None, image.shape[-1]))
    return crop
