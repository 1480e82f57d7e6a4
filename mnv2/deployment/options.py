"""The options of the commands that use weights: which file, and what the file may not tell."""

import argparse
import contextlib
import json
import math
from pathlib import Path
from typing import Any

from mnv2.runtime.cli import whole_number
from mnv2.runtime.errors import UserError, reason
from mnv2.runtime.files import did_you_mean


def add_weights_options(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Adds --weights, or WEIGHTS without a name, and what a file of weights may not tell."""
    if positional:
        parser.add_argument("weights", metavar="WEIGHTS")
    else:
        parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument(
        "--image_size",
        type=_image_size,
        metavar="PIXELS",
        help="of a side, or HEIGHTxWIDTH (default: as the weights expect)",
    )
    parser.add_argument(
        "--resize",
        metavar="METHOD",
        help="tensorflow, pillow, nearest or keras: the whole picture is stretched, as these do; "
        "bilinear, bicubic, slim or mnv2: with a crop (default: as the weights' family evaluates)",
    )
    parser.add_argument(
        "--mean",
        type=_numbers,
        metavar="X[,Y,Z]",
        help="the network gets (x - mean) / std, with x in [0, 1] (default: as the file tells)",
    )
    parser.add_argument("--std", type=_numbers, metavar="X[,Y,Z]")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, in order: one per line, a JSON list, or a JSON object between "
        "names and numbers, as Keras' class_indices",
    )


def weights_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what the options of `add_weights_options` say, by the names of `mnv2.load`."""
    names = ("image_size", "resize", "mean", "std", "classes")
    return {name: getattr(arguments, name) for name in names}


def _image_size(text: str) -> tuple[int, int]:
    """Reads `224` or `192x256` as (height, width)."""
    height, _, width = text.partition("x")
    return whole_number()(height), whole_number()(width or height)


def _numbers(text: str) -> tuple[float, ...]:
    """Reads `0.5` or `0.485,0.456,0.406`."""
    with contextlib.suppress(ValueError):
        numbers = tuple(map(float, text.split(",")))
        if all(map(math.isfinite, numbers)):
            return numbers
    raise argparse.ArgumentTypeError(
        f"must be a number, or one per channel, as 0.485,0.456,0.406, got {text!r}"
    )


def read_class_names(path: Path) -> list[str]:
    """Reads the names of classes. Raises UserError if it is unclear which they are."""
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig").strip()
        lines = [line.strip() for line in text.splitlines()]
        names = _in_order(json.loads(text)) if text.startswith(("[", "{")) else lines
    except (OSError, ValueError) as error:
        hint = did_you_mean(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"cannot read the classes in {path}: {reason(error)}{hint}") from None
    if not isinstance(names, list) or not all(isinstance(x, str) and x for x in names) or not names:
        raise UserError(
            f'{path} is no list of classes: one per line, ["cat", "dog"] or {{"cat": 0, "dog": 1}}'
        )
    return names


def _in_order(value: Any) -> Any:
    """Returns the names of an object that numbers them from 0, in order; anything else as it is."""
    numbers = [str(number) for number in range(len(value))]
    for names in (value, {str(y): x for x, y in value.items()}) if isinstance(value, dict) else ():
        if names.keys() == set(numbers):
            return [names[number] for number in numbers]
    return value
