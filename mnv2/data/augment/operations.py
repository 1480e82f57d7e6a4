"""Operations on pictures (h w c, uint8), as Pillow and therefore torchvision compute them.

They equal Pillow's to the last grey level, with its roundings: published recipes were trained with
these. Gray pictures have one channel; then `color` changes nothing, as in Pillow.
"""

import tensorflow as tf

from mnv2.data.augment.affine import transform as transform

_LUMINANCE = (19595, 38470, 7471)  # of 65536, for red, green and blue: ITU-R 601


def _blend(degenerate: tf.Tensor, image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Goes from `degenerate` (factor 0) through the image (1) and on; cuts fractions off."""
    start = tf.cast(degenerate, tf.float32)
    mixed = start + tf.cast(factor, tf.float32) * (tf.cast(image, tf.float32) - start)
    return tf.cast(tf.clip_by_value(mixed, 0, 255), tf.uint8)


def _gray(image: tf.Tensor) -> tf.Tensor:
    """Returns the luminance of a picture: h w 1, uint8."""
    if image.shape[-1] == 1:
        return image
    weighted = tf.reduce_sum(tf.cast(image, tf.int32) * _LUMINANCE, axis=-1, keepdims=True)
    return tf.cast((weighted + (1 << 15)) // (1 << 16), tf.uint8)


def brightness(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Multiplies all pixels: 0 is black, 1 the picture itself."""
    return _blend(tf.zeros_like(image), image, factor)


def color(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Changes the saturation: 0 is gray, 1 the picture itself."""
    return _blend(_gray(image), image, factor)


def contrast(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Changes the distance to the mean luminance: 0 is a gray picture, 1 the picture itself."""
    total = tf.reduce_sum(tf.cast(_gray(image), tf.int64))
    pixels = tf.size(image[..., 0], out_type=tf.int64)
    mean = (2 * total + pixels) // (2 * pixels)  # rounded
    return _blend(tf.cast(mean, tf.uint8), image, factor)


def sharpness(image: tf.Tensor, factor: float | tf.Tensor) -> tf.Tensor:
    """Changes the distance to a blurred picture: 0 is blurred, 1 the picture itself.

    The border of one pixel stays, as does a picture that is nothing but border.
    """
    pixels = tf.cast(image, tf.int32)

    def rows(begin: int, end: int | None) -> tf.Tensor:
        return pixels[begin:end]

    def sum_of_three(columns: tf.Tensor) -> tf.Tensor:
        return columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:]

    around = sum_of_three(rows(0, -2) + rows(1, -1) + rows(2, None))
    inside = (2 * (around + 4 * pixels[1:-1, 1:-1]) + 13) // 26  # a weight of 5 of 13, rounded
    height, width = tf.shape(image)[0], tf.shape(image)[1]

    def blurred() -> tf.Tensor:
        framed = tf.pad(inside, ((1, 1), (1, 1), (0, 0)))
        is_inside = tf.pad(tf.ones_like(inside, tf.bool), ((1, 1), (1, 1), (0, 0)))
        return tf.cast(tf.where(is_inside, framed, pixels), tf.uint8)

    smooth = tf.cond((height > 2) & (width > 2), blurred, lambda: image)
    return _blend(smooth, image, factor)


def posterize(image: tf.Tensor, bits: float | tf.Tensor) -> tf.Tensor:
    """Keeps the upper `bits` bits, 0 to 8, of each value."""
    dropped = tf.cast(8 - tf.cast(bits, tf.int32), tf.uint8)
    kept = tf.bitwise.left_shift(tf.cast(255, tf.int32), tf.cast(dropped, tf.int32)) & 255
    return tf.bitwise.bitwise_and(image, tf.cast(kept, tf.uint8))


def solarize(image: tf.Tensor, threshold: float | tf.Tensor) -> tf.Tensor:
    """Inverts the values from `threshold` on."""
    below = tf.cast(image, tf.float32) < tf.cast(threshold, tf.float32)
    return tf.where(below, image, invert(image))


def invert(image: tf.Tensor) -> tf.Tensor:
    """Returns the negative."""
    return 255 - image


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0 ... 255. A channel of one value stays."""
    low = tf.cast(tf.reduce_min(image, axis=(0, 1)), tf.float64)
    high = tf.cast(tf.reduce_max(image, axis=(0, 1)), tf.float64)
    scale = 255 / tf.maximum(high - low, 1)
    # In double precision and this order, because Pillow cuts the fraction off.
    stretched = tf.cast(image, tf.float64) * scale + (-low * scale)
    whole = tf.cast(tf.clip_by_value(stretched, 0, 255), tf.uint8)
    return tf.where(high > low, whole, image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Makes each value of each channel about as frequent as any other."""

    def of_channel(channel: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(tf.cast(channel, tf.int32), minlength=256, maxlength=256)
        last = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0))
        step = (tf.reduce_sum(counts) - counts[last]) // 255
        below = tf.cumsum(counts, exclusive=True) + step // 2
        table = tf.minimum(below // tf.maximum(step, 1), 255)
        table = tf.where(step > 0, table, tf.range(256))
        return tf.gather(tf.cast(table, tf.uint8), tf.cast(channel, tf.int32))

    channels = tf.unstack(image, axis=-1)
    return tf.stack([of_channel(channel) for channel in channels], axis=-1)
