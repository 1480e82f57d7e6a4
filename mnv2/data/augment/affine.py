"""Affine transforms of pictures, with Pillow's arithmetic.

A transform is six numbers (a, b, c, d, e, f): the pixel of the result with centre (x, y) shows the
place (ax + by + c, dx + ey + f) of the picture.
"""

import math

import tensorflow as tf

type Six = tuple[tf.Tensor, ...]


def _number(value: float | tf.Tensor) -> tf.Tensor:
    """Converts to double precision, in which Pillow computes places."""
    if tf.is_tensor(value):
        return tf.cast(value, tf.float64)
    return tf.constant(value, tf.float64)  # tf.cast would go through single precision


def shear_x(level: float | tf.Tensor) -> Six:
    """Moves each row to the left by `level` times its distance from the top."""
    return tuple(map(_number, (1, level, 0, 0, 1, 0)))


def shear_y(level: float | tf.Tensor) -> Six:
    """Moves each column up by `level` times its distance from the left."""
    return tuple(map(_number, (1, 0, 0, level, 1, 0)))


def translate(right: float | tf.Tensor, down: float | tf.Tensor) -> Six:
    """Moves the picture by whole pixels; fractions are cut off."""
    return tuple(map(_number, (1, 0, -_cut(right), 0, 1, -_cut(down))))


def rotate(image: tf.Tensor, degrees: float | tf.Tensor) -> Six:
    """Turns the picture counterclockwise about its centre."""
    angle = -_number(degrees) * (math.pi / 180)
    cosine, sine = (_rounded(function(angle)) for function in (tf.cos, tf.sin))
    x, y = (_number(tf.shape(image)[axis]) / 2 for axis in (1, 0))
    right, down = (cosine * -x + sine * -y) + x, (-sine * -x + cosine * -y) + y
    return (cosine, sine, right, -sine, cosine, down)


def _cut(value: float | tf.Tensor) -> tf.Tensor:
    number = _number(value)
    return tf.sign(number) * tf.floor(tf.abs(number))


def _rounded(value: tf.Tensor) -> tf.Tensor:
    """Rounds to 15 decimals, as Pillow does, so that a quarter turn is exact."""
    return tf.round(value * 1e15) / 1e15


def transform(image: tf.Tensor, six: Six, *, interpolation: str, fill: int = 0) -> tf.Tensor:
    """Transforms a picture (h w c, uint8); what lies outside of it gets the value `fill`.

    interpolation is `nearest` or `bilinear`. A bilinear value is cut, not rounded.
    """
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    x, y = tf.meshgrid(tf.range(width), tf.range(height))
    six = tuple(map(_number, six))
    if interpolation == "nearest":
        column, row = _fixed(x, y, six[:3]), _fixed(x, y, six[3:])
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = _pixels(image, row, column)
    else:
        across, down = _place(x, y, six[:3]), _place(x, y, six[3:])
        inside = (across >= 0) & (across < _number(width)) & (down >= 0) & (down < _number(height))
        found = tf.cast(_bilinear(image, across - 0.5, down - 0.5), tf.uint8)
    return tf.where(inside[..., None], found, tf.cast(fill, tf.uint8))


def _fixed(x: tf.Tensor, y: tf.Tensor, three: Six) -> tf.Tensor:
    """Returns a coordinate as a whole number, computed with 16 binary digits, as Pillow does."""
    a, b, c = three
    half = c + a * 0.5 + b * 0.5
    a, b, c = (tf.cast(tf.floor(value * 65536 + 0.5), tf.int32) for value in (a, b, half))
    return tf.bitwise.right_shift(c + b * y + a * x, 16)


def _place(x: tf.Tensor, y: tf.Tensor, three: Six) -> tf.Tensor:
    a, b, c = three
    return a * (_number(x) + 0.5) + b * (_number(y) + 0.5) + c


def _pixels(image: tf.Tensor, row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
    """Looks pixels up; rows and columns outside are those of the edge."""
    height, width = tf.shape(image)[0], tf.shape(image)[1]
    row = tf.clip_by_value(row, 0, height - 1)
    column = tf.clip_by_value(column, 0, width - 1)
    flat = tf.reshape(image, (-1, image.shape[-1]))
    return tf.gather(flat, row * width + column)


def _bilinear(image: tf.Tensor, across: tf.Tensor, down: tf.Tensor) -> tf.Tensor:
    left, top = tf.floor(across), tf.floor(down)
    column, row = tf.cast(left, tf.int32), tf.cast(top, tf.int32)

    def pixels(down: int, right: int) -> tf.Tensor:
        return _number(_pixels(image, row + down, column + right))

    right = (across - left)[..., None]
    upper = pixels(0, 0) + right * (pixels(0, 1) - pixels(0, 0))
    lower = pixels(1, 0) + right * (pixels(1, 1) - pixels(1, 0))
    return upper + (down - top)[..., None] * (lower - upper)
