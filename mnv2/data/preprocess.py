"""Brings decoded images to a network's size and channels. Pixels stay in [0, 255].

The device normalises them: a batch of uint8 pixels is a quarter of one of float32.

All random choices are functions of a pair of seeds that the caller derives for each example.
"""

import tensorflow as tf

from mnv2.runtime.errors import check_choice

AUGMENTATIONS = ("none", "flip", "crop_flip", "inception")
CENTRAL_CROP = 0.875


def train_image(
    images: tf.Tensor,
    seeds: tf.Tensor,
    *,
    augmentation: str,
    size: tuple[int, int],
    pad: int,
    channels: int = 0,
) -> tf.Tensor:
    """Augments one image (h w c, uint8) or a batch (b h w c, uint8) for training.

    images        the decoded image or images
    seeds         two integers per image: (2,) or (b, 2)
    augmentation  none       resized if the size differs
                  flip       as none, then mirrored left to right with probability 1/2
                  crop_flip  as none, then padded by `pad` zero pixels, cropped back at a random
                             position, and mirrored as in flip
                  inception  a random crop with 5 to 100 % of the area and an aspect ratio of 3/4 to
                             4/3, resized, and mirrored as in flip (slim's
                             inception_preprocessing without its colour distortion)
    size          (height, width) of the result
    channels      of the result, 1 or 3; 0 for those of the image

    Returns uint8 images (... height width c). Pixels of resized images are rounded.
    """
    check_choice(augmentation, AUGMENTATIONS, "augmentation")
    if augmentation == "none":
        return _to_uint8(to_channels(_resize(images, size), channels))

    def augment_one(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
        if augmentation == "inception":
            image = _inception_crop(image, crop_seed)
        image = _resize(image, size)
        if augmentation == "crop_flip":
            padded = tf.pad(image, ((pad, pad), (pad, pad), (0, 0)))
            image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
        return _to_uint8(to_channels(image, channels))

    if images.shape.rank == 3:
        return augment_one(images, seeds)
    return tf.map_fn(lambda pair: augment_one(*pair), (images, seeds), fn_output_signature=tf.uint8)


def eval_image(image: tf.Tensor, *, size: tuple[int, int], channels: int = 0) -> tf.Tensor:
    """Brings images (... h w c, uint8) to `size`, (height, width), and to `channels`.

    An image of another size is cropped to its central 87.5 % (slim) and resized, to float32.
    """
    if image.shape[-3:-1] != size:
        image = tf.image.central_crop(image, CENTRAL_CROP)
    return to_channels(_resize(image, size), channels)


def _to_uint8(image: tf.Tensor) -> tf.Tensor:
    if image.dtype == tf.uint8:
        return image
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def to_channels(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts grayscale to colour by repeating it, or colour to grayscale by its luminance.

    Images (... c) that have `channels` channels, and all images if it is 0, stay unchanged.
    """
    if channels == 3 and image.shape[-1] == 1:
        return tf.image.grayscale_to_rgb(image)
    if channels == 1 and image.shape[-1] == 3:
        return tf.image.rgb_to_grayscale(tf.cast(image, tf.float32))
    return image


def _resize(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    return image if image.shape[-3:-1] == size else tf.image.resize(image, size)


def _inception_crop(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    whole_image = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        whole_image,
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.05, 1.0),
        max_attempts=100,
    )
    crop = tf.slice(image, begin, size)
    crop.set_shape((None, None, image.shape[-1]))
    return crop
