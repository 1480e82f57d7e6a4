"""Which part of a picture a network sees, and in which size: the operations on the host.

Training, evaluation and prediction use it on one picture at a time, which no operation changes in
place. Random choices come from a `numpy.random.Generator` of the caller.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnv2.preprocess.resizing import METHODS, Picture, Size, resized, to_uint8
from mnv2.preprocess.text import HOST, Pipeline, operation, parse
from mnv2.runtime.errors import Check, UserError, check_choice, choice, number, ordered, whole

# The views of finished networks by their short names, which are those of their authors' code.
VIEWS = {
    "mnv2": "fit({crop})",
    "slim": "central_crop({crop})|resize(method='bilinear_tf1')",
    "bilinear": "resize_shorter(crop={crop})|center_crop",
    "bicubic": "resize_shorter(crop={crop}, method='bicubic_antialiased')|center_crop",
    "keras": "resize(method='keras')",
    "tensorflow": "resize",
    "pillow": "resize(method='bilinear_antialiased')",
    "nearest": "resize(method='nearest')",
}

# Of red, green and blue (3 1), as in tf.image.rgb_to_grayscale.
LUMINANCE = np.array([[0.2989], [0.5870], [0.1140]], np.float32)
COVERED = 0.1  # slim redraws crops below a tenth of the picture
_INCEPTION_TRIES = 100  # of slim
_CROP_TRIES = 10  # of torchvision's RandomResizedCrop
LONGEST = 256  # times its shorter side that resize_shorter sees of a picture's longer one

CROPS = ("fit.crop", "central_crop.fraction", "resize_shorter.crop")  # the part that is kept
RANDOM = ("inception_crop", "resized_crop")
LARGEST_SIDE = 4096  # of the pictures that operations make: `pixels` counts on it
Side = int | Size | None  # of a square, or (height, width); None for the size of the caller
Random = np.random.Generator | None
Part = tuple[slice, slice]  # rows, columns
Range = tuple[float, float]
_share = number(0, 1, low_open=True, high_open=False)


def _side(field: str, value: Any) -> Any:
    """Checks a size in pixels: of a square, or (height, width)."""
    check = whole(1, LARGEST_SIDE)
    if isinstance(value, tuple) and len(value) == 2:
        return tuple(check(field, side) for side in value)
    return check(field, value)


# The checks of what random crops have in common.
_DRAWN: dict[str, Check] = {
    "smallest": _share,
    "largest": _share,
    "aspect": ordered(1e-2, 1e2),
    "method": choice(METHODS),
    "size": _side,
}


def named_view(
    name: str, crop: float | None = None, first: Size | None = None, size: int | None = None
) -> str:
    """Returns the text of a view of VIEWS, which keeps the part `crop` of each side (0.875).

    `first` is the (height, width) to which pictures are brought before, as in `keras`, and `size`
    that of the result, if it is not the caller's. Raises UserError for a name that is unknown.
    """
    check_choice(name, VIEWS, "view")
    part = 0.875 if crop is None else crop
    text = VIEWS[name].format(crop=part)
    if size is not None and "center_crop" in text:
        text = text.replace(f"crop={part}", f"{int(size / part)}") + f"({size})"
    elif size is not None:
        text = f"{text[:-1]}, size={size})" if text.endswith(")") else f"{text}(size={size})"
    return f"resize({tuple(first)}, 'keras')|{text}" if first else text


def parse_view(text: str, field: str) -> Pipeline:
    """Returns the operations that a text describes. Raises UserError if one is random."""
    pipeline = parse(text, field, (HOST,))
    for call in pipeline.calls:
        if call.name in RANDOM:
            raise UserError(
                f"{field} has {call.name}, which is random: only data.train can have it"
            )
    return pipeline


@dataclasses.dataclass(frozen=True)
class View:
    """What a network sees of a picture: the operations of a pipeline on the host.

    pipeline  its other operations are for the devices, and do nothing here; without one of the
              host, a picture of another size is stretched as by resize()
    wanted    (height, width) that the caller wants; `size` is the one that pictures get
    channels  of the result, 1 or 3; 0 for those of the picture
    rounds    whether pictures are rounded to uint8, as for training
    """

    pipeline: Pipeline
    wanted: Size
    channels: int
    rounds: bool = False

    def __post_init__(self) -> None:
        for call in self.pipeline.of(HOST):
            if call.name in RANDOM and call["smallest"] > call["largest"]:
                raise UserError(
                    f"smallest of {call.name} must not exceed largest, got {call['smallest']:g} "
                    f"and {call['largest']:g}"
                )

    @property
    def size(self) -> Size:
        """The (height, width) of the pictures that are seen."""
        calls = self.pipeline.of(HOST)
        return _wanted(calls[-1]["size"], self.wanted) if calls else self.wanted

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.size, self.channels)

    @property
    def dtype(self) -> type:
        """uint8 where pictures are rounded; float32 otherwise, also if a method gives bytes."""
        fits = [call.name for call in self.pipeline.of(HOST)] == ["fit"]
        return np.uint8 if self.rounds or fits else np.float32

    def keeps(self, shape: Sequence[int | None]) -> bool:
        """Tells whether pictures of a shape (h w c) stay as they are."""
        names = {call.name for call in self.pipeline.of(HOST)}
        changes = bool(names - {"fit"}) or self.dtype != np.uint8
        return tuple(shape) == self.shape and not changes

    def __call__(self, picture: Picture, random: Random = None) -> Picture:
        """Returns what is seen of a picture (h w c), of the type `dtype`."""
        calls = self.pipeline.of(HOST)
        if not calls:
            picture = resized(picture, self.wanted, "bilinear")
        for call in calls:
            if random is None and call.name in RANDOM:
                raise UserError(f"{call.name} is random, and only training has random views")
            picture = call(picture, self.wanted, random)
        # Before rounding: a luminance is rounded once.
        picture = to_channels(picture, self.channels)
        return to_uint8(picture) if self.dtype == np.uint8 else picture.astype(np.float32)


def to_channels(picture: Picture, channels: int) -> Picture:
    """Converts pictures (h w c) to gray by their luminance, or gray ones to colour by repetition.

    Others, and all if `channels` is 0, stay. A luminance (tf.image.rgb_to_grayscale) is float32.
    """
    if channels == 3 and picture.shape[-1] == 1:
        return np.repeat(picture, 3, axis=-1)
    if channels == 1 and picture.shape[-1] == 3:
        return picture.astype(np.float32) @ LUMINANCE
    return picture


@operation(HOST, sizes=True, size=_side, method=choice(METHODS))
def resize(
    picture: Picture, wanted: Size, random: Random, *, size: Side = None, method: str = "bilinear"
) -> Picture:
    """Stretched to `size` x `size`, by default to the size that the network gets."""
    return resized(picture, _wanted(size, wanted), method)


@operation(HOST, size=_side, crop=_share, method=choice(METHODS))
def resize_shorter(
    picture: Picture,
    wanted: Size,
    random: Random,
    *,
    size: Side = None,
    crop: float = 0.875,
    method: str = "bilinear_antialiased",
) -> Picture:
    """The shorter side becomes `size`, by default the network's / `crop`; the other in proportion.

    As torchvision's Resize. If the network's size is not square, both sides cover it, as in timm.
    Of a picture with a side of more than LONGEST times the other only the centre is seen: one of
    2 x 60,000 pixels would need gigabytes.
    """
    picture = picture[_centre(picture.shape, [LONGEST * min(picture.shape[:2])] * 2)]
    height, width = picture.shape[:2]
    high, wide = _wanted(size, (int(wanted[0] / crop), int(wanted[1] / crop)))
    if high * width >= wide * height:
        wide = max(high * width // height, 1)
    else:
        high = max(wide * height // width, 1)
    if high * wide > 4 * LARGEST_SIDE**2:
        raise UserError(f"resize_shorter would make a picture of {high} x {wide} pixels")
    return resized(picture, (high, wide), method)


@operation(HOST, sizes=True, size=_side)
def center_crop(picture: Picture, wanted: Size, random: Random, *, size: Side = None) -> Picture:
    """The centre of `size` x `size`, by default of the size that the network gets."""
    high, wide = _wanted(size, wanted)
    if picture.shape[0] < high or picture.shape[1] < wide:
        raise UserError(
            f"center_crop cannot cut {high} x {wide} out of a picture of {picture.shape[0]} x "
            f"{picture.shape[1]}: resize it to at least that before, as with resize_shorter"
        )
    return picture[_centre(picture.shape, (high, wide))]


@operation(HOST, fraction=_share)
def central_crop(
    picture: Picture, wanted: Size, random: Random, *, fraction: float = 0.875
) -> Picture:
    """The central `fraction` of height and width, as tf.image.central_crop."""
    top, left = (int((side - side * fraction) / 2) for side in picture.shape[:2])
    return picture[top : len(picture) - top, left : picture.shape[1] - left]


@operation(HOST, sizes=True, crop=_share, size=_side)
def fit(
    picture: Picture, wanted: Size, random: Random, *, crop: float = 0.875, size: Side = None
) -> Picture:
    """A picture of the network's size as it is; of any other the central `crop`, stretched.

    Bilinear without antialiasing, as slim's evaluation does on TensorFlow 2; as the only operation
    rounded to 8 bits.
    """
    if picture.shape[:2] == _wanted(size, wanted):
        return picture
    centre = central_crop(picture, wanted, random, fraction=crop)
    return resized(centre, _wanted(size, wanted), "bilinear")


@operation(HOST, sizes=True, **_DRAWN)
def inception_crop(
    picture: Picture,
    wanted: Size,
    random: np.random.Generator,
    *,
    smallest: float = 0.05,
    largest: float = 1.0,
    aspect: Range = (3 / 4, 4 / 3),
    method: str = "bilinear",
    size: Side = None,
) -> Picture:
    """A random crop of slim: its share of the area and its width / height in ranges.

    slim's inception_preprocessing, which is tf.image.sample_distorted_bounding_box with the whole
    picture as the object: the aspect is uniform, and then the height.
    """
    part = _inception_part(picture.shape, (smallest, largest), aspect, random)
    return resized(picture[part], _wanted(size, wanted), method)


@operation(HOST, sizes=True, **_DRAWN)
def resized_crop(
    picture: Picture,
    wanted: Size,
    random: np.random.Generator,
    *,
    smallest: float = 0.08,
    largest: float = 1.0,
    aspect: Range = (3 / 4, 4 / 3),
    method: str = "bilinear_antialiased",
    size: Side = None,
) -> Picture:
    """A random crop of torchvision: its share of the area and its width / height in ranges.

    torchvision's RandomResizedCrop: the area is uniform, and the logarithm of the aspect.
    """
    part = _resized_crop_part(picture.shape, (smallest, largest), aspect, random)
    return resized(picture[part], _wanted(size, wanted), method)


def _wanted(size: Side, wanted: Size) -> Size:
    if size is None:
        return wanted
    return size if isinstance(size, tuple) else (size, size)


def _centre(shape: tuple[int, ...], size: Sequence[int]) -> Part:
    """Returns the central part, at most of a size. It begins as in torchvision: ties to even."""
    high, wide = (min(own, side) for own, side in zip(shape, size, strict=False))
    top, left = round((shape[0] - high) / 2), round((shape[1] - wide) / 2)
    return slice(top, top + high), slice(left, left + wide)


def _inception_part(
    shape: tuple[int, ...], area: Range, aspect: Range, random: np.random.Generator
) -> Part:
    """Draws a part, with the rounding of TensorFlow's kernel; the whole picture if no try fits."""
    height, width = shape[:2]
    least, most = (limit * height * width for limit in area)
    for _ in range(_INCEPTION_TRIES):
        ratio = random.uniform(*aspect)
        highest = round(math.sqrt(most / ratio))
        if round(highest * ratio) > width:
            highest = int((width + 0.5 - 1e-7) / ratio)
            highest -= round(highest * ratio) > width
        highest = min(highest, height)
        lowest = min(round(math.sqrt(least / ratio)), highest)
        high = lowest + int(random.integers(highest - lowest + 1))
        high += high * round(high * ratio) < least  # rounding may have left the range
        high -= high * round(high * ratio) > most
        wide = round(high * ratio)
        fits = 0 < high <= height and 0 < wide <= width and least <= high * wide <= most
        if fits and high * wide / (height * width) >= COVERED:
            # The last position is never drawn, neither by TensorFlow.
            free = (max(height - high, 1), max(width - wide, 1))
            top, left = (int(random.integers(choices)) for choices in free)
            return slice(top, top + high), slice(left, left + wide)
    return slice(None), slice(None)


def _resized_crop_part(
    shape: tuple[int, ...], area: Range, aspect: Range, random: np.random.Generator
) -> Part:
    """Draws a part; if no try fits, the centre of the nearest possible aspect."""
    height, width = shape[:2]
    low, high = (math.log(limit) for limit in aspect)
    for _ in range(_CROP_TRIES):
        pixels = height * width * random.uniform(*area)
        ratio = math.exp(random.uniform(low, high))
        wide, tall = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = (int(random.integers(free + 1)) for free in (height - tall, width - wide))
            return slice(top, top + tall), slice(left, left + wide)
    nearest = min(max(width / height, aspect[0]), aspect[1])
    tall, wide = max(round(width / nearest), 1), max(round(height * nearest), 1)
    tall, wide = min(tall, height), min(wide, width)
    top, left = (height - tall) // 2, (width - wide) // 2
    return slice(top, top + tall), slice(left, left + wide)
