"""Random erasing (arXiv 1708.04896): a rectangle of a picture is replaced by one colour."""

from collections.abc import Sequence

import tensorflow as tf

AREA = (0.02, 0.33)  # of the picture
ASPECT = (0.3, 3.3)  # height to width
_TRIES = 10  # to find a rectangle that is smaller than the picture


def erase(image: tf.Tensor, seed: tf.Tensor, probability: float, fill: Sequence[int]) -> tf.Tensor:
    """Fills a rectangle of a picture (h w c, uint8) with the colour `fill`, of c values.

    The rectangle is drawn as by torchvision's RandomErasing. torchvision erases after the pixels
    were normalised, with 0; here that is the mean colour. `seed` (2,) decides every choice.
    """
    if not probability:
        return image
    seeds = tf.unstack(tf.random.experimental.stateless_split(seed, 5))
    erases = tf.random.stateless_uniform((), seeds[0]) < probability
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    pixels = tf.cast(height * width, tf.float32)
    area = pixels * tf.random.stateless_uniform((_TRIES,), seeds[1], *AREA)
    low, high = (tf.math.log(limit) for limit in ASPECT)
    aspect = tf.exp(tf.random.stateless_uniform((_TRIES,), seeds[2], low, high))
    heights = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    widths = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    possible = (heights < height) & (widths < width)
    first = tf.argmax(possible)
    rows, columns = heights[first], widths[first]

    def place(seed: tf.Tensor, free: tf.Tensor) -> tf.Tensor:
        at = tf.random.stateless_uniform((), seed) * tf.cast(free + 1, tf.float32)
        return tf.minimum(tf.cast(at, tf.int32), free)

    top, left = place(seeds[3], height - rows), place(seeds[4], width - columns)
    in_rows = (tf.range(height) >= top) & (tf.range(height) < top + rows)
    in_columns = (tf.range(width) >= left) & (tf.range(width) < left + columns)
    erased = erases & possible[first] & in_rows[:, None] & in_columns[None, :]
    return tf.where(erased[..., None], tf.constant(fill, tf.uint8), image)
