"""Loads weights as a command was asked to use them."""

import argparse
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mnv2.pretrained import Preprocessing, Pretrained, load_classifier
from mnv2.pretrained.options import read_class_names, read_numbers
from mnv2.pretrained.preprocessing import check_view
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note, note_once

SMALL = 64  # pixels of a side, below which pictures are usually prepared for the network


def load_as_asked(arguments: argparse.Namespace) -> Pretrained:
    """Loads weights that classify, with the options of `add_weights_options`.

    Raises UserError as `load_classifier` does, and if an option is wrong or does not suit the
    weights.
    """
    if (arguments.mean is None) != (arguments.std is None):
        raise UserError("--mean and --std belong together: give both, or neither")
    if arguments.resize is not None:
        check_view(arguments.resize, "--resize")
    scaling: dict[str, Any] = {
        name: read_numbers(text, f"--{name}")
        for name, text in (("mean", arguments.mean), ("std", arguments.std))
        if text is not None
    }
    if 0.0 in scaling.get("std", ()):
        raise UserError("--std must not be 0")
    names = None if arguments.classes is None else read_class_names(arguments.classes)
    loaded = load_classifier(arguments.weights, arguments.image_size)
    for name, values in scaling.items():
        if len(values) not in (1, loaded.channels):
            raise UserError(
                f"--{name} has {len(values)} numbers but the network has {loaded.channels} "
                "channels: give one number, or one per channel"
            )
    preprocess = loaded.preprocess
    if arguments.resize is not None:
        preprocess = preprocess.with_view(arguments.resize)
    if scaling:
        preprocess = dataclasses.replace(preprocess, **scaling, assumed=False)
    loaded = dataclasses.replace(loaded, preprocess=preprocess)
    return loaded if names is None else loaded.with_class_names(names, str(arguments.classes))


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


def describe_input(
    preprocess: Preprocessing, image_size: tuple[int, int], scaling_given: bool
) -> None:
    """Says in two lines what the network sees of a picture, and how pixels are scaled."""
    note(preprocess.describe_view(image_size))
    note(preprocess.describe_pixels("as you say" if scaling_given else None))
