"""Decodes picture files. Training, evaluation and prediction all use this decoder.

The content of a file chooses who decodes it, and its name never does: TensorFlow, which is fast,
decodes JPEG and PNG, and Pillow decodes the other formats.
"""

import io
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps

from mnv2.runtime.errors import UserError

# What Pillow finds odd in a picture that it decodes would fill the terminal.
warnings.filterwarnings("ignore", module=r"PIL\.")

# The formats that Pillow decodes, by its names.
BY_PILLOW = ("BMP", "GIF", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM")
READ = ("JPEG", "PNG", *BY_PILLOW)

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
# How the content of a file in a format starts.
_STARTS = {
    "JPEG": (_JPEG,),
    "PNG": (_PNG,),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "PPM": tuple(b"P%d%c" % (number, space) for number in range(1, 7) for space in b" \n\t\r#"),
    "JPEG XL": (b"\0\0\0\x0cJXL ", b"\xff\x0a"),
    "PSD": (b"8BPS",),
    "SVG": (b"<svg",),
}
_BMP_HEADERS = [size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124)]
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_WHITE_IS_ZERO = 0


def decode_picture(content: bytes) -> np.ndarray:
    """Decodes the content of a picture file: h w 3, uint8, upright as EXIF says.

    Gray is repeated, other colours are converted to RGB, and transparency is dropped. 16 bits
    become 8, the high ones. The first picture of an animation counts.

    Raises UserError, whose message says what the file is, if it cannot be read.
    """
    kind = format_of(content)
    if not content:
        raise UserError("it is empty")
    if kind is None:
        raise UserError(f"it is no picture: it starts like none of {', '.join(READ)}")
    if kind not in READ:
        raise UserError(f"it is a picture in the format {kind}: convert it to JPEG or PNG")
    if kind in BY_PILLOW:
        return _decode_by_pillow(content)
    try:
        return decode(tf.constant(content)).numpy()
    except tf.errors.OpError as error:
        raise UserError(f"it is a damaged {kind}: {short_message(error.message)}") from error


def decode(content: tf.Tensor, *, turn: bool = True) -> tf.Tensor:
    """Decodes a file as `decode_picture` does, within a graph; unless `turn`, as it is stored."""

    def by_tensorflow() -> tf.Tensor:
        image = tf.io.decode_image(content, channels=3, expand_animations=False)
        image.set_shape((None, None, 3))
        if not turn:
            return image
        held = tf.numpy_function(_orientation, (content,), tf.int32, stateful=False)
        return _upright(image, tf.ensure_shape(held, ()))

    def by_pillow() -> tf.Tensor:
        return tf.numpy_function(_decode_by_pillow, (content,), tf.uint8, stateful=False)

    is_jpeg, is_png = (
        tf.strings.substr(content, 0, len(start)) == start for start in (_JPEG, _PNG)
    )
    image = tf.cond(is_jpeg | is_png, by_tensorflow, by_pillow)
    image.set_shape((None, None, 3))
    return image


def _bytes(content: Any) -> bytes:
    """Returns what TensorFlow gives to a function: outside of a graph, an array of one object."""
    return np.asarray(content, object).item()


def _orientation(content: Any) -> np.ndarray:
    """Returns the EXIF orientation of a JPEG or PNG, 1 to 8; 1 if it has none or an invalid one."""
    try:
        with Image.open(io.BytesIO(_bytes(content))) as picture:
            held = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow can fail, in many ways, on pictures that TensorFlow decodes
        held = 1
    return np.array(held if held in range(1, 9) else 1, np.int32)


def format_of(content: bytes) -> str | None:
    """Returns the format of a picture by the first bytes of its file; None if it is no picture."""
    for kind, starts in _STARTS.items():
        if content.startswith(starts):
            return kind
    if content[:2] == b"BM" and content[14:18] in _BMP_HEADERS:
        return "BMP"  # two letters could also be a text
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    if content[4:8] == b"ftyp":
        brands = content[8:64]
        if b"avif" in brands or b"avis" in brands:
            return "AVIF"
        if any(brand in brands for brand in (b"heic", b"heix", b"hevc", b"mif1", b"msf1")):
            return "HEIC"
    if content.lstrip().startswith(b"<?xml") and b"<svg" in content[:1000]:
        return "SVG"
    return None


def short_message(message: str) -> str:
    """Shortens an error message to one line without the names of TensorFlow operations."""
    lines = message.strip().splitlines() or ["no reason given"]
    return lines[0].rpartition("}} ")[2].partition(" [Op:")[0]


def _decode_by_pillow(content: Any) -> np.ndarray:
    """Decodes a file that is neither JPEG nor PNG. Raises UserError if that is impossible."""
    kind = format_of(content := _bytes(content))
    try:
        with Image.open(io.BytesIO(content), formats=BY_PILLOW) as picture:
            _check_pixels(picture)
            white_is_zero = _tag(picture, _PHOTOMETRIC) == _WHITE_IS_ZERO
            upright = ImageOps.exif_transpose(picture)
    except UserError:
        raise
    except Exception as error:  # there is one kind for each way in which a file can be damaged
        said = short_message(str(error))
        reason = "Pillow cannot read it" if "cannot identify image" in said else said
        raise UserError(f"it is a damaged or unusual {kind or 'file'}: {reason}") from error
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


def _upright(image: tf.Tensor, held: tf.Tensor) -> tf.Tensor:
    """Turns an image (h w c) upright, given its EXIF orientation, 1 to 8."""
    image = tf.cond(held > 4, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    turned = (
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
    )
    return tf.switch_case((held - 1) % 4, turned)
