"""Preprocessing for evaluation, as the authors of pretrained weights do it."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnv2.preprocess.host import CROPS, VIEWS, View, named_view, parse_view
from mnv2.preprocess.text import OPERATIONS
from mnv2.runtime.terminal import note, note_once

# Mean and standard deviation of pixels in [0, 1], which training subtracts and divides by.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,), (0.5,)),  # slim and Keras: -1 to 1
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # kuangliu/pytorch-cifar
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision and timm
}
SMALL = 64  # pixels of a side, below which pictures are usually prepared for the network
SMALLEST = 32  # a smaller size in the name of a file means something else


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How evaluation crops, resizes and normalises pictures.

    view       the operations of `preprocess.host` that bring a picture to the network's size, as
               text: `resize_shorter(crop=0.875)|center_crop` (torchvision, timm)
    mean, std  of pixels in [0, 1]: the network gets (pixel - mean) / std
    assumed    mean and std are what the authors of such files use, but the file does not tell them
    """

    view: str = named_view("mnv2")
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    assumed: bool = False

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Normalises images (... c) in [0, 255] that already have the network's size."""
        unit = jnp.asarray(images, jnp.float32) / 255
        return (unit - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    @staticmethod
    def of(values: Mapping[str, Any]) -> "Preprocessing":
        """Returns what a file of this package or an earlier version says. Raises UserError."""
        values = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
        if "method" in values:  # until 0.2.0
            names = ("method", "crop", "first")
            values["view"] = named_view(*(values.pop(name, None) for name in names))
        parse_view(values["view"], "the view")
        return Preprocessing(**values)

    @property
    def crop(self) -> float | None:
        """The part of each side that the view keeps; None if it keeps the whole picture."""
        arguments = parse_view(self.view, "the view").flat()
        return next((arguments[name] for name in CROPS if name in arguments), None)

    def with_view(self, text: str) -> "Preprocessing":
        """Returns the same with another view: a text, or a name of VIEWS, which keeps the crop.

        Raises UserError for anything else.
        """
        if text in VIEWS or (re.fullmatch(r"\w+", text) and text not in OPERATIONS):
            text = named_view(text, self.crop)
        parse_view(text, "resize")
        return dataclasses.replace(self, view=text)

    def view_of(self, size: tuple[int, int], channels: int) -> View:
        """Returns the view for a network of a size, (height, width), and number of channels."""
        return View(parse_view(self.view, "the view"), size, channels)

    def describe_view(self, size: tuple[int, int]) -> str:
        """Describes in one line which part of a picture the network sees, and how it is resized."""
        return f"view: {self.view}, to {size[0]} x {size[1]}"

    def describe_pixels(self, origin: str | None = None) -> str:
        """Describes in one line how pixels are scaled, and who says so: by default the file."""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))
            for values in (self.mean, self.std)
        )
        if origin is None and self.assumed:
            origin = "assumed, since the file does not tell; --mean and --std change it"
        origin = origin or "as the weights say"
        return f"pixels: (x - mean) / std of x in [0, 1], mean {mean}, std {std} ({origin})"


def size_in_name(name: str) -> tuple[int, int] | None:
    """Returns the (height, width) that the name of a published file of weights tells.

    For example, 96 x 96 for mobilenet_v1_0.25_96.ckpt and mobilenetv2_96x96-ff0e83d8.pth.
    """
    match = re.search(
        r"mobilenet.*_(96|128|160|192|224)(?=[_.]|$)|(?<!\d)(\d{2,4})x\2(?!\d)", name, re.IGNORECASE
    )
    side = int(match[1] or match[2]) if match else 0
    return (side, side) if side >= SMALLEST else None


def size_to_assume(path: Path) -> tuple[int, int]:
    """Returns the size of pictures for a file that does not tell it, and says so in a note."""
    size = size_in_name(path.name)
    origin = "from its name" if size else "assumed"
    size = size or (224, 224)
    note(
        f"{path} does not tell the size of its pictures: {size[0]} x {size[1]} {origin}; "
        "--image_size changes it"
    )
    return size


def note_unlike(
    image_size: tuple[int, int], channels: int, first: Callable[[], np.ndarray | None]
) -> None:
    """Says in one line if weights for small or gray pictures get large or coloured ones.

    `first` returns one of them, h w c, or None. It is called only if the weights are such.
    """
    is_small = max(image_size) < SMALL
    if not (is_small or channels == 1) or (picture := first()) is None:
        return
    height, width, _ = picture.shape
    coloured = channels == 1 and bool(np.ptp(picture, axis=2).any())
    if coloured or (is_small and min(height, width) > 2 * max(image_size)):
        note_once(
            f"the weights are for {'gray ' if channels == 1 else ''}pictures of {image_size[0]} x "
            f"{image_size[1]} pixels; the first one here has {'colours, and ' if coloured else ''}"
            f"{height} x {width} pixels"
        )
