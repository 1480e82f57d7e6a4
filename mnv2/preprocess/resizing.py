"""Resizes one picture as TensorFlow does, as slim on TensorFlow 1, and as Pillow, in NumPy."""

import numpy as np
from PIL import Image

# nearest, bilinear             as tf.image.resize, which takes no mean of pixels when a picture
#                               shrinks: float32, not rounded, but for nearest
# bilinear_tf1                  the same on the grid of TensorFlow 1 (slim): a pixel is a point at
#                               whole numbers, not a square
# bilinear_antialiased,         as Pillow and torchvision, which take it: rounded to uint8
# bicubic_antialiased
# keras                         for a user's Keras model, whose file does not tell the method:
#                               bilinear_antialiased if a side shrinks by more than SHRINKS, else
#                               bilinear
_BY_PILLOW = {
    "bilinear_antialiased": Image.Resampling.BILINEAR,
    "bicubic_antialiased": Image.Resampling.BICUBIC,
}
METHODS = ("nearest", "bilinear", *_BY_PILLOW, "bilinear_tf1", "keras")
SHRINKS = 2

Picture = np.ndarray  # h w c, uint8 or float32, with values in [0, 255]
Size = tuple[int, int]  # height, width


def resized(picture: Picture, size: Size, method: str) -> Picture:
    """Returns a picture (h w c) in a size; one that has it stays as it is, whatever the method."""
    if picture.shape[:2] == size:
        return picture
    if method == "keras":
        shrinks = any(own > SHRINKS * new for own, new in zip(picture.shape[:2], size, strict=True))
        method = "bilinear_antialiased" if shrinks else "bilinear"
    if method in _BY_PILLOW:
        return _by_pillow(to_uint8(picture), size, _BY_PILLOW[method])
    half = np.float32(0 if method == "bilinear_tf1" else 0.5)
    rows, columns = (  # where the new pixels lie among the old ones, in float32 as TensorFlow
        (np.arange(new, dtype=np.float32) + half) * (np.float32(own) / np.float32(new)) - half
        for own, new in zip(picture.shape[:2], size, strict=True)
    )
    if method == "nearest":
        row, column = (np.floor(points + 0.5).astype(np.intp) for points in (rows, columns))
        return picture[row].take(column, axis=1)
    return _bilinear(picture, rows, columns)


def to_uint8(picture: Picture) -> Picture:
    """Rounds a picture to 8 bits; one that has them stays as it is."""
    if picture.dtype == np.uint8:
        return picture
    rounded = np.rint(picture)
    return np.clip(rounded, 0, 255, out=rounded).astype(np.uint8)


def _by_pillow(picture: Picture, size: Size, filter: int) -> Picture:
    """Resizes a picture (h w c, uint8) exactly as Pillow does."""
    if picture.shape[2] not in (1, 3):
        channels = (picture[..., i : i + 1] for i in range(picture.shape[2]))
        return np.concatenate([_by_pillow(x, size, filter) for x in channels], axis=-1)
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])
    return np.asarray(image.resize(size[::-1], filter)).reshape(*size, -1)


def _bilinear(picture: Picture, rows: np.ndarray, columns: np.ndarray) -> Picture:
    """Returns pixels (h w c, float32) at points, first between columns, as TensorFlow does."""
    height, width, channels = picture.shape
    top, bottom, down = _neighbours(rows, height)
    left, right, across = _neighbours(columns, width)
    if height > 2 * len(rows):
        used, places = np.unique(np.concatenate([top, bottom]), return_inverse=True)
        picture, (top, bottom) = picture[used], np.split(places, 2)
    values = picture.reshape(len(picture), -1)
    # Where the values of pixels are in a line: one byte is taken faster than three.
    left, right = (
        (pixels[:, None] * channels + np.arange(channels)).ravel() for pixels in (left, right)
    )
    across = np.repeat(across, channels)
    lines = _between(values.take(left, axis=1), values.take(right, axis=1), across)
    return _between(lines[top], lines[bottom], down[:, None]).reshape(len(rows), -1, channels)


def _neighbours(points: np.ndarray, own: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and after each point, and how far it is from one to the other."""
    floor = np.floor(points)
    before = np.maximum(floor, 0).astype(np.intp)
    after = np.minimum(np.ceil(points), own - 1).astype(np.intp)
    return before, after, points - floor


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns first + (second - first) * share (float32), in the memory of `second` if it can."""
    first, second = (ends.astype(np.float32, copy=False) for ends in (first, second))
    second -= first
    second *= share
    second += first
    return second
