"""Brings decoded images to a network's size and channels. Pixels stay in [0, 255].

The device normalises them: a batch of uint8 pixels is a quarter of one of float32.

All random choices are functions of a pair of seeds that the caller derives for each example.
"""

from typing import NamedTuple

import tensorflow as tf

from mnv2.data.augment import Policy, augment, distort, erase
from mnv2.runtime.errors import check_choice

AUGMENTATIONS = ("none", "flip", "crop_flip", "inception", "resized_crop")
COVERED = 0.1  # slim redraws crops below a tenth of the picture
# By name: the method of tf.image.resize, and whether it averages when it makes pictures smaller.
# Pillow and torchvision do; TensorFlow and slim do not.
INTERPOLATIONS = {
    "nearest": ("nearest", False),
    "bilinear": ("bilinear", False),
    "bicubic": ("bicubic", False),
    "bilinear_antialiased": ("bilinear", True),
    "bicubic_antialiased": ("bicubic", True),
}
_CROP_TRIES = 10  # of torchvision's RandomResizedCrop


class View(NamedTuple):
    """How training sees a picture.

    size           (height, width) that the network gets
    augmentation   none          resized if the size differs
                   flip          as none, then mirrored left to right with probability 1/2
                   crop_flip     as none, then padded by `pad` zero pixels, cropped back at a random
                                 position, and mirrored as in flip
                   inception     a random crop with `area` of the picture's area and an aspect ratio
                                 (width to height) of `aspect`, resized, and mirrored as in flip
                                 (slim's inception_preprocessing)
                   resized_crop  the same, drawn as by torchvision: the logarithm
                                 of the aspect ratio is uniform
    channels       of the result, 1 or 3; 0 for those of the picture
    interpolation  of resizing: one of INTERPOLATIONS
    distortion     of colours, as in slim: none, fast or full
    policy         what else is done to the picture, such as RandAugment
    erasing        the probability that a rectangle is erased
    erased         the value of what is erased, for each channel: 0 to 255
    """

    size: tuple[int, int]
    augmentation: str = "none"
    pad: int = 4
    channels: int = 0
    area: tuple[float, float] = (0.05, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    distortion: str = "none"
    policy: Policy = Policy()
    erasing: float = 0.0
    erased: tuple[int, ...] = (128,)

    @property
    def only_moves(self) -> bool:
        """Tells whether the values of pixels stay as they are: see `data.rows`."""
        return (self.distortion, self.policy.name, self.erasing) == ("none", "none", 0)


def train_image(images: tf.Tensor, seeds: tf.Tensor, *, view: View) -> tf.Tensor:
    """Augments one image (h w c, uint8) or a batch (b h w c, uint8) for training.

    `seeds` are two integers per image, (2,) or (b, 2). They decide every random choice. First the
    image is cropped, resized and mirrored, then its colours are distorted, then the policy applies,
    then a rectangle is erased.

    Returns uint8 images (... height width c). Pixels of resized images are rounded.
    """
    check_choice(view.augmentation, AUGMENTATIONS, "augmentation")
    if view.augmentation == "none" and view.only_moves:
        return to_uint8(to_channels(_resize(images, view.size, view.interpolation), view.channels))
    if images.shape.rank == 3:
        return _train_one(images, seeds, view)
    return tf.map_fn(
        lambda pair: _train_one(pair[0], pair[1], view),
        (images, seeds),
        fn_output_signature=tf.uint8,
    )


def _train_one(image: tf.Tensor, seed: tf.Tensor, view: View) -> tf.Tensor:
    # Two seeds, as before there was anything but crops and flips.
    crop_seed, flip_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 2))
    if view.augmentation == "inception":
        image = _inception_crop(image, crop_seed, view)
    elif view.augmentation == "resized_crop":
        image = _resized_crop(image, crop_seed, view)
    image = _resize(image, view.size, view.interpolation)
    if view.augmentation == "crop_flip":
        padded = tf.pad(image, ((view.pad, view.pad), (view.pad, view.pad), (0, 0)))
        image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
    if view.augmentation != "none":
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    if view.only_moves:
        return to_uint8(to_channels(image, view.channels))
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))[2:]
    image = to_uint8(distort(image, seeds[0], view.distortion))
    image = augment(image, seeds[1], view.policy)
    image = to_uint8(to_channels(image, view.channels))
    channels = image.shape[-1]
    erased = view.erased if len(view.erased) == channels else view.erased[:1] * channels
    return erase(image, seeds[2], view.erasing, erased)


def to_uint8(image: tf.Tensor) -> tf.Tensor:
    """Rounds an image to 8 bits; one that has them stays as it is."""
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


def _resize(image: tf.Tensor, size: tuple[int, int], interpolation: str) -> tf.Tensor:
    if image.shape[-3:-1] == size:
        return image
    check_choice(interpolation, INTERPOLATIONS, "interpolation")
    method, antialias = INTERPOLATIONS[interpolation]
    return tf.image.resize(image, size, method, antialias=antialias)


def _inception_crop(image: tf.Tensor, seed: tf.Tensor, view: View) -> tf.Tensor:
    whole_image = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.shape(image),
        whole_image,
        seed,
        min_object_covered=COVERED,
        aspect_ratio_range=view.aspect,
        area_range=view.area,
        max_attempts=100,
    )
    return _cut(image, begin, size)


def _resized_crop(image: tf.Tensor, seed: tf.Tensor, view: View) -> tf.Tensor:
    """Crops at random; if no crop fits in ten tries, the centre, of the nearest possible aspect."""
    for_area, for_aspect, for_top, for_left = tf.unstack(
        tf.random.experimental.stateless_split(seed, 4)
    )
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(image)[:2]))
    area = height * width * tf.random.stateless_uniform((_CROP_TRIES,), for_area, *view.area)
    low, high = (tf.math.log(float(limit)) for limit in view.aspect)
    aspect = tf.exp(tf.random.stateless_uniform((_CROP_TRIES,), for_aspect, low, high))
    widths, heights = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = tf.argmax(fits)
    nearest = tf.clip_by_value(width / height, *view.aspect)
    central = tf.stack(
        [
            tf.clip_by_value(tf.round(width / nearest), 1.0, height),
            tf.clip_by_value(tf.round(height * nearest), 1.0, width),
        ]
    )
    size = tf.where(fits[first], tf.stack([heights[first], widths[first]]), central)
    free = tf.stack([height, width]) - size
    at = tf.stack([tf.random.stateless_uniform((), one) for one in (for_top, for_left)])
    begin = tf.where(fits[first], tf.minimum(tf.floor(at * (free + 1)), free), tf.floor(free / 2))
    return _cut(image, *(tf.cast(tf.pad(pair, ((0, 1),)), tf.int32) for pair in (begin, size)))


def _cut(image: tf.Tensor, begin: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Cuts a rectangle out: begin and size have three numbers, and all channels are kept."""
    crop = tf.slice(image, begin, tf.concat([size[:2], [-1]], 0))
    crop.set_shape((None, None, image.shape[-1]))
    return crop
