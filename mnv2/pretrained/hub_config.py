"""Reads the JSON files that the Hugging Face hub keeps next to weights, such as `config.json`.

A file that is missing or damaged, or a value that is null, changes nothing; what is not understood
is said in one line.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnv2.runtime.terminal import note


def read(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an empty one, after a note, if it cannot be read."""
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        note(f"{path} is ignored: {error}")
        return {}
    if isinstance(loaded, dict):
        return loaded
    note(f"{path} is ignored: it does not hold an object")
    return {}


def take(
    config: Mapping[str, Any],
    name: str,
    is_valid: Callable[[Any], bool],
    default: Any,
    source: Path,
) -> Any:
    """Returns a value of `config`; `default` if it is missing, null or, after a note, invalid."""
    value = config.get(name)
    if value is None:
        return default
    if is_valid(value):
        return value
    note(f"{source}: {name} = {str(value)[:60]} is not understood; used {default} instead")
    return default


def is_number(value: Any) -> bool:
    """Returns whether `value` is a finite number."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def is_fraction(value: Any) -> bool:
    """Returns whether `value` is in (0, 1]."""
    return is_number(value) and 0 < value <= 1


def is_color(value: Any) -> bool:
    """Returns whether `value` is a list of numbers for one channel or for three."""
    return isinstance(value, list) and len(value) in (1, 3) and all(map(is_number, value))


def is_scale(value: Any) -> bool:
    """Returns whether `value` is a list of positive numbers for one channel or for three."""
    return is_color(value) and min(value) > 0


def is_side(value: Any) -> bool:
    """Returns whether `value` can be the side of an image, in pixels."""
    return type(value) is int and 1 <= value <= 4096


def is_list_of_strings(value: Any) -> bool:
    """Returns whether `value` is a list of strings."""
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
