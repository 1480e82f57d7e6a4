"""Resizes one picture as TensorFlow does, as slim on TensorFlow 1, and as Pillow."""

import cv2
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

cv2.setNumThreads(1)  # tf.data has a thread per core

Picture = np.ndarray  # h w c, uint8 or float32, with values in [0, 255]
Size = tuple[int, int]  # height, width


def resized(picture: Picture, size: Size, method: str) -> Picture:
    """Returns a picture (h w c) in a size; one that has it stays as it is, whatever the method."""
    if picture.shape[:2] == size:
        return picture
    if picture.shape[2] not in (1, 3):  # neither library takes every number of channels
        alone = (picture[..., i : i + 1] for i in range(picture.shape[2]))
        return np.concatenate([resized(channel, size, method) for channel in alone], axis=-1)
    if method == "keras":
        shrinks = any(own > SHRINKS * new for own, new in zip(picture.shape[:2], size, strict=True))
        method = "bilinear_antialiased" if shrinks else "bilinear"
    if method in _BY_PILLOW:
        picture = to_uint8(picture)
        image = Image.fromarray(picture if picture.shape[2] == 3 else picture[..., 0])
        return np.asarray(image.resize(size[::-1], _BY_PILLOW[method])).reshape(*size, -1)
    if method == "nearest":
        row, column = (
            (np.arange(new, dtype=np.float32) + 0.5) * (np.float32(own) / np.float32(new))
            for own, new in zip(picture.shape[:2], size, strict=True)
        )
        return picture[row.astype(np.intp)].take(column.astype(np.intp), axis=1)
    # One call to OpenCV: threads of tf.data run it side by side, which they do not with NumPy's
    # many small operations. On one core it takes a sixth of their time.
    values = picture.astype(np.float32)
    if method == "bilinear":
        found = cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
    else:
        grid = np.diag([picture.shape[1] / size[1], picture.shape[0] / size[0], 1])[:2]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        found = cv2.warpAffine(
            values, grid, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
    return found.reshape(*size, -1)


def to_uint8(picture: Picture) -> Picture:
    """Rounds a picture to 8 bits; one that has them stays as it is."""
    if picture.dtype == np.uint8:
        return picture
    rounded = np.rint(picture)
    return np.clip(rounded, 0, 255, out=rounded).astype(np.uint8)
