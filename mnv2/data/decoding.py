"""Decodes picture files. Training, evaluation and prediction all use this decoder.

The content of a file chooses who decodes it, and its name never does: OpenCV, which is fast and
gives Pillow's pixels, decodes whole JPEG files, and Pillow decodes everything else. Only of CMYK
are OpenCV's pixels one level away.
"""

import io
import warnings
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mnv2.runtime.errors import UserError

# What Pillow finds odd in a picture that it decodes would fill the terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The formats that are decoded, by Pillow's names.
READ = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")

_JPEG = b"\xff\xd8\xff"  # how the content of a file starts
_SCAN, _END = b"\xff\xda", b"\xff\xd9"  # markers of a JPEG: where data begin, and the last one
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


def decode_picture(content: bytes, *, turn: bool = True) -> np.ndarray:
    """Decodes the content of a picture file: h w 3, uint8.

    Upright as EXIF says, or as it is stored unless `turn`. Gray is repeated, other colours are
    converted to RGB, and transparency is dropped. 16 bits become 8, the high ones. The first
    picture of an animation counts.

    Raises UserError, whose message says what the file is, if it cannot be read.
    """
    if not content:
        raise UserError("it is empty")
    # Of a file that is cut, OpenCV would give the first part.
    if content.startswith(_JPEG) and content.rfind(_END) > content.rfind(_SCAN):
        flags = cv2.IMREAD_COLOR_RGB | (0 if turn else cv2.IMREAD_IGNORE_ORIENTATION)
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        if picture is not None:
            return picture
    return _decode_by_pillow(content, turn)


def read_picture(path: Path) -> np.ndarray:
    """Reads a picture file, as `decode_picture`. Raises UserError that says why it cannot."""
    try:
        return decode_picture(path.read_bytes())
    except OSError as error:
        raise UserError(error.strerror or type(error).__name__) from error


def short_message(message: str) -> str:
    """Shortens an error message to one line without the names of TensorFlow operations."""
    lines = message.strip().splitlines() or ["no reason given"]
    return lines[0].rpartition("}} ")[2].partition(" [Op:")[0]


def _decode_by_pillow(content: bytes, turn: bool) -> np.ndarray:
    """Decodes a file of READ. Raises UserError if that is impossible."""
    try:
        with Image.open(io.BytesIO(content), formats=READ) as picture:
            _check_pixels(picture)
            white_is_zero = _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO
            picture.load()
            upright = ImageOps.exif_transpose(picture) if turn else picture.copy()
    except UserError:
        raise
    except UnidentifiedImageError as error:
        raise UserError(
            f"it is damaged, or no picture in a format of {', '.join(READ)}: convert it to one"
        ) from error
    except Exception as error:  # there is one kind for each way in which a file can be damaged
        raise UserError(f"it is damaged or unusual: {short_message(str(error))}") from error
    if upright.mode in _EIGHT_BITS:
        return np.asarray(upright.convert("RGB"))
    values = np.asarray(upright).astype(np.int32)  # Pillow's own conversion would clip at 255
    high_byte = (65535 - values if white_is_zero else values) >> 8
    return np.repeat(high_byte.astype(np.uint8)[..., None], 3, axis=-1)


def _check_pixels(picture: Image.Image) -> None:
    """Raises UserError unless the pixels have 8 bits or 16."""
    bits = _tag(picture, _BITS_PER_SAMPLE) or 16
    is_16_bits = picture.mode.startswith("I;16") and bits == 16
    # Pillow scales those of PPM to 16 bits.
    if picture.mode in _EIGHT_BITS or is_16_bits or (picture.format, picture.mode) == ("PPM", "I"):
        return
    pixels = {"F": "floating-point numbers", "I": "integers of 32 bits"}.get(
        picture.mode, f"of Pillow's mode {picture.mode}, of {bits} bits"
    )
    raise UserError(
        f"its pixels are {pixels}, and what is white is unclear: "
        "convert it to 8 or 16 bits per channel"
    )


def _tag(picture: Image.Image, tag: int) -> int | None:
    """Returns the first value of a TIFF tag; None if the picture has none."""
    value = getattr(picture, "tag_v2", {}).get(tag)
    return value[0] if isinstance(value, tuple) else value
