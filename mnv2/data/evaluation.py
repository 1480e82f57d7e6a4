"""The view of a picture in evaluation: which part of it a network sees, and in which size.

Everything that shows pictures to a finished network uses this one implementation: validation and
test, recalibration, prediction, calibration and comparison of exported files. It works on the sizes
that pictures have when it runs, so it gives the same pixels eagerly and inside tf.data.
"""

from typing import Any

import tensorflow as tf

from mnv2.data.preprocess import to_channels, to_uint8

SHRINKS = 2  # the factor above which the method `keras` takes the mean of pixels
_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def eval_view(
    pictures: Any,
    size: tuple[int, int],
    channels: int = 0,
    *,
    method: str = "mnv2",
    crop: float = 0.875,
    first: tuple[int, int] | None = None,
) -> tf.Tensor:
    """Brings pictures (... h w c, uint8) to `size`, (height, width), and to `channels`.

    `method`, `crop` and `first` are as in `pretrained.Preprocessing`. With `channels` 0, pictures
    keep those that they have.

    Returns images (... height width channels) in [0, 255]: uint8 with `mnv2`, as in training, and
    float32 with the others, whose sources do not round.
    """
    pictures = tf.convert_to_tensor(pictures)
    batch = pictures if pictures.shape.rank == 4 else pictures[None]
    if first:
        batch = _stretch(batch, first, "keras")
    if method == "mnv2":
        view = to_uint8(to_channels(_unless_of_size(batch, size, crop), channels))
    elif method == "slim":
        # The grid of slim and TensorFlow 1: a pixel is a point at whole numbers, not a square.
        centre = tf.image.central_crop(batch, crop)
        resized = tf.compat.v1.image.resize_bilinear(centre, size, align_corners=False)
        view = to_channels(resized, channels)
    elif method in _KERNELS:
        view = to_channels(_resized_centre(batch, size, crop, _KERNELS[method]), channels)
    else:
        view = to_channels(_stretch(batch, size, method), channels)
    return view if pictures.shape.rank == 4 else view[0]


def _unless_of_size(batch: tf.Tensor, size: tuple[int, int], crop: float) -> tf.Tensor:
    """Crops and resizes pictures (n h w c) that do not have the size; uint8 or float32."""

    def resized() -> tf.Tensor:
        return tf.image.resize(tf.image.central_crop(batch, crop), size)

    if batch.shape[1:3] == size:
        return batch
    if batch.shape[1:3].is_fully_defined():
        return resized()
    has_size = tf.reduce_all(tf.shape(batch)[1:3] == size)
    view = tf.cond(has_size, lambda: tf.cast(batch, tf.float32), resized)
    return tf.ensure_shape(view, (None, *size, None))


def _resized_centre(batch: tf.Tensor, size: tuple[int, int], crop: float, kernel: str) -> tf.Tensor:
    """Resizes pictures (n h w c) until both sides cover size / `crop`, and keeps the centre.

    For square sizes this is torchvision's Resize and CenterCrop, for others timm's. Only what is
    kept is computed: a picture that is a thousand times as wide as high needs no more memory.
    """
    shape = tf.shape(batch)
    height, width = shape[1], shape[2]
    high, wide = (int(side / crop) for side in size)
    # high / height >= wide / width in whole numbers: the height is enlarged to `high` exactly.
    by_height = high * width >= wide * height
    resized = tf.where(
        by_height,
        tf.stack([high, high * width // height]),
        tf.stack([wide * height // width, wide]),
    )
    # As torchvision rounds: half of the difference, ties to even.
    start = tf.round(tf.cast(resized - size, tf.float32) / 2)
    kept = tf.raw_ops.ScaleAndTranslate(
        images=batch,
        size=size,
        scale=tf.cast(resized, tf.float32) / tf.cast(shape[1:3], tf.float32),
        translation=-start,
        kernel_type=kernel,
        antialias=True,
    )
    kept = tf.ensure_shape(kept, (None, *size, batch.shape[-1]))
    return tf.clip_by_value(tf.round(kept), 0, 255)  # PIL, which both use, has 8 bits


def _stretch(batch: tf.Tensor, size: tuple[int, int], method: str) -> tf.Tensor:
    """Resizes without keeping the aspect ratio. Each side that shrinks is averaged in `pillow`."""
    batch = tf.cast(batch, tf.float32)
    if method == "nearest":
        return tf.image.resize(batch, size, "nearest")
    plain = tf.image.resize(batch, size)
    if method == "tensorflow":
        return plain
    averaged = tf.clip_by_value(tf.round(tf.image.resize(batch, size, antialias=True)), 0, 255)
    if method == "pillow":
        return averaged
    shape = tf.cast(tf.shape(batch)[1:3], tf.float32)
    return tf.where(tf.reduce_any(shape > SHRINKS * tf.constant(size, tf.float32)), averaged, plain)
