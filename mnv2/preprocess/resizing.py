"""Resizes one picture as TensorFlow does, as slim on TensorFlow 1, and as Pillow, in NumPy."""

import numpy as np
from PIL import Image

# nearest, bilinear, bicubic    as tf.image.resize, which takes no mean of pixels when a picture
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
METHODS = ("nearest", "bilinear", "bicubic", *_BY_PILLOW, "bilinear_tf1", "keras")
SHRINKS = 2

Picture = np.ndarray  # h w c, uint8 or float32, with values in [0, 255]
Size = tuple[int, int]  # height, width
Part = tuple[slice, slice]  # rows, columns
ALL = (slice(None), slice(None))

_STEPS = 1024  # between two pixels: TensorFlow looks the weights of bicubic up in a table
_WHOLE = 2**23  # pixels: a resized picture that has more is never held as a whole


def resized(picture: Picture, size: Size, method: str, part: Part = ALL) -> Picture:
    """Returns a picture (h w c) in a size, or a part of the result.

    A picture that has the size stays as it is, whatever the method.
    """
    if picture.shape[:2] == size:
        return picture[part]
    if method == "keras":
        shrinks = any(own > SHRINKS * new for own, new in zip(picture.shape[:2], size, strict=True))
        method = "bilinear_antialiased" if shrinks else "bilinear"
    if method in _BY_PILLOW:
        return _by_pillow(to_uint8(picture), size, _BY_PILLOW[method], part)
    half = 0.0 if method == "bilinear_tf1" else 0.5
    rows, columns = (
        _points(own, new, kept, half)
        for own, new, kept in zip(picture.shape[:2], size, part, strict=True)
    )
    first, last = max(int(columns[0]) - 2, 0), int(columns[-1]) + 3  # bicubic reads the most
    picture, columns = picture[:, first:last], columns - first
    if method == "nearest":
        rows, columns = (np.floor(points + 0.5).astype(np.intp) for points in (rows, columns))
        return picture[rows].take(columns, axis=1)
    return (_bicubic if method == "bicubic" else _bilinear)(picture, rows, columns)


def to_uint8(picture: Picture) -> Picture:
    """Rounds a picture to 8 bits; one that has them stays as it is."""
    if picture.dtype == np.uint8:
        return picture
    rounded = np.rint(picture)
    return np.clip(rounded, 0, 255, out=rounded).astype(np.uint8)


def _by_pillow(picture: Picture, size: Size, filter: int, part: Part) -> Picture:
    """Resizes a picture (h w c, uint8) as Pillow does, and returns a part of the result.

    The result is exactly Pillow's, unless a picture is so wide or so high that it has more than
    _WHOLE pixels: then only the part is computed, and Pillow rounds its place.
    """
    if picture.shape[2] not in (1, 3):
        channels = (picture[..., i : i + 1] for i in range(picture.shape[2]))
        return np.concatenate([_by_pillow(x, size, filter, part) for x in channels], axis=-1)
    box = None
    if size[0] * size[1] > _WHOLE:
        rows, (top, bottom), height = _cut(picture.shape[0], size[0], part[0])
        columns, (left, right), width = _cut(picture.shape[1], size[1], part[1])
        picture, box = picture[rows, columns], (left, top, right, bottom)
        size, part = (height, width), ALL
    image = Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])
    values = np.asarray(image.resize(size[::-1], filter, box=box))
    return values.reshape(*size, -1)[part]


def _cut(own: int, new: int, part: slice) -> tuple[slice, tuple[float, float], int]:
    """Returns the old pixels of a side that a part of the new ones needs.

    Also returns where in them the part begins and ends, and the number of its new pixels.
    """
    start, stop, _ = part.indices(new)
    scale = own / new
    margin = 3 * max(scale, 1)  # filters reach less far
    first, last = max(int(start * scale - margin), 0), min(int(stop * scale + margin) + 1, own)
    box = (start * scale - first, min(stop * scale, own) - first)
    return slice(first, last), box, stop - start


def _points(own: int, new: int, part: slice, half: float) -> np.ndarray:
    """Returns where the new pixels of a side lie among the old ones, in float32 as TensorFlow."""
    pixels = np.arange(*part.indices(new), dtype=np.float32)
    return (pixels + half) * (np.float32(own) / np.float32(new)) - half


def _bilinear(picture: Picture, rows: np.ndarray, columns: np.ndarray) -> Picture:
    """Returns pixels (h w c, float32) at points, first between columns, as TensorFlow does."""
    height, width, channels = picture.shape
    top, bottom, down = _neighbours(rows, height)
    left, right, across = _neighbours(columns, width)
    if height > 2 * len(rows):
        used, places = np.unique(np.concatenate([top, bottom]), return_inverse=True)
        picture, (top, bottom) = picture[used], np.split(places, 2)
    values = picture.reshape(len(picture), -1)
    left, right = _values(left, channels), _values(right, channels)
    across = np.repeat(across, channels)
    lines = _between(values.take(left, axis=1), values.take(right, axis=1), across)
    return _between(lines[top], lines[bottom], down[:, None]).reshape(len(rows), -1, channels)


def _neighbours(points: np.ndarray, own: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the pixels before and after each point, and how far it is from one to the other."""
    floor = np.floor(points)
    before = np.maximum(floor, 0).astype(np.intp)
    after = np.minimum(np.ceil(points), own - 1).astype(np.intp)
    return before, after, points - floor


def _values(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Returns where the values of pixels are in a line: one byte is taken faster than three."""
    return (pixels[:, None] * channels + np.arange(channels)).ravel()


def _between(first: np.ndarray, second: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Returns first + (second - first) * share (float32), in the memory of `second` if it can."""
    first, second = (ends.astype(np.float32, copy=False) for ends in (first, second))
    second -= first
    second *= share
    second += first
    return second


def _bicubic(picture: Picture, rows: np.ndarray, columns: np.ndarray) -> Picture:
    """Returns pixels (h w c, float32) at points: Keys' cubic with a = -1/2."""
    height, width, channels = picture.shape
    values = picture.reshape(height, -1)
    lines = np.zeros((len(rows), width * channels), np.float32)
    for row, weight in _four(rows, height):
        taken = values[row].astype(np.float32, copy=False)
        taken *= weight[:, None]
        lines += taken
    result = np.zeros((len(rows), len(columns) * channels), np.float32)
    for column, weight in _four(columns, width):
        taken = lines.take(_values(column, channels), axis=1)
        taken *= np.repeat(weight, channels)
        result += taken
    return result.reshape(len(rows), -1, channels)


def _four(points: np.ndarray, own: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the four pixels around each point, and the weight of each (float32)."""
    floor = np.floor(points)
    past = np.rint((points - floor) * _STEPS) / _STEPS
    pixels, weights = [], []
    for place in (-1, 0, 1, 2):
        x = np.abs(past - place)
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        pixel = floor.astype(np.intp) + place
        inside = (pixel >= 0) & (pixel < own)
        weights.append(np.where(inside, np.where(x <= 1, near, far), np.float32(0)))
        pixels.append(np.clip(pixel, 0, own - 1))
    total = sum(weights)
    return [(pixel, weight / total) for pixel, weight in zip(pixels, weights, strict=True)]
