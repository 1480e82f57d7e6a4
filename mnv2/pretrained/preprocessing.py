"""Preprocessing for evaluation, as the authors of pretrained weights do it."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnv2.runtime.errors import check_choice
from mnv2.runtime.terminal import note

# What each method does, for people. {size} is the network's size, {crop} the kept share.
METHODS = {
    "mnv2": "as this package evaluates: unchanged if it has that size, else the central {crop} "
    "stretched to {size}, bilinear, without antialiasing",
    "slim": "the central {crop} stretched to {size}, bilinear on the grid of TensorFlow 1, without "
    "antialiasing",
    "bilinear": "shorter side resized, bilinear with antialiasing, and the centre of {size} kept",
    "bicubic": "shorter side resized, bicubic with antialiasing, and the centre of {size} kept",
    "keras": "the whole picture stretched to {size}, bilinear, antialiased if it shrinks to less "
    "than half",
    "tensorflow": "the whole picture stretched to {size}, bilinear, without antialiasing",
    "pillow": "the whole picture stretched to {size}, bilinear with antialiasing",
    "nearest": "the whole picture stretched to {size}, nearest pixel",
}
CROPPING = ("mnv2", "slim", "bilinear", "bicubic")  # the methods that keep less than the whole
# Mean and standard deviation of pixels in [0, 1], which training subtracts and divides by.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "half": ((0.5,), (0.5,)),  # slim and Keras: -1 to 1
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),  # kuangliu/pytorch-cifar
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision and timm
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How evaluation crops, resizes (`data.eval_view` does it) and normalises pictures.

    method     mnv2        as this package trains: a picture of the right size is unchanged, any
                           other picture is treated as in `slim`, on the pixel grid of TensorFlow
                           2, and rounded to 8 bits
               slim        the central `crop` of height and width, resized to the input size without
                           keeping the aspect ratio (slim, Keras)
               bilinear    the shorter side is resized to input size / `crop`, then the centre is
                           cropped (torchvision)
               bicubic     the same with a bicubic filter (timm)
               tensorflow  resized without keeping the aspect ratio, bilinear without antialiasing
                           (tf.image.resize, Keras' image_dataset_from_directory)
               pillow      the same with antialiasing (Pillow's resize with BILINEAR)
               nearest     the same with the nearest pixel (Keras' load_img, ImageDataGenerator)
               keras       `pillow` if the picture shrinks by more than 2, else `tensorflow`: for a
                           user's Keras model, whose file does not tell how pictures were resized
    crop       the fraction of each side that is kept
    mean, std  of pixels in [0, 1]: the network gets (pixel - mean) / std
    assumed    mean and std are what the authors of such files use, but the file does not tell them
    first      (height, width) to which pictures are brought as in `keras`, before `method`
    """

    method: str = "mnv2"
    crop: float = 0.875
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    assumed: bool = False
    first: tuple[int, int] | None = None

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Normalises images (... c) in [0, 255] that already have the network's size."""
        unit = jnp.asarray(images, jnp.float32) / 255
        return (unit - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def with_method(self, method: str) -> "Preprocessing":
        """Returns the same with another method; the crop is kept if both methods crop.

        Raises UserError for an unknown method.
        """
        check_choice(method, METHODS, "--resize")
        crop = 1.0 if method not in CROPPING else self.crop if self.method in CROPPING else 0.875
        return dataclasses.replace(self, method=method, crop=crop, first=None)

    def describe_view(self, size: tuple[int, int]) -> str:
        """Describes in one line which part of a picture the network sees, and how it is resized."""
        text = METHODS[self.method].format(
            size=f"{size[0]} x {size[1]}", crop=f"{100 * self.crop:.4g} %"
        )
        first = f"first {self.first[0]} x {self.first[1]} as keras, then " if self.first else ""
        return f"view ({self.method}): {first}{text}"

    def describe_pixels(self, origin: str | None = None) -> str:
        """Describes in one line how pixels are scaled, and who says so: by default the file."""
        mean, std = (
            ", ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))
            for values in (self.mean, self.std)
        )
        if origin is None:
            origin = (
                "assumed, since the file does not tell; --mean and --std change it"
                if self.assumed
                else "as the weights say"
            )
        return f"pixels: (x - mean) / std of x in [0, 1], mean {mean}, std {std} ({origin})"


def size_in_name(name: str) -> tuple[int, int] | None:
    """Returns the (height, width) that the name of a published file of weights tells.

    For example, 96 x 96 for mobilenet_v2_..._0.35_96_no_top.h5 and mobilenet_v1_0.25_128.ckpt.
    """
    match = re.search(r"mobilenet.*_(96|128|160|192|224)(?=[_.]|$)", name, re.IGNORECASE)
    return (int(match[1]), int(match[1])) if match else None


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
