"""Errors in what a user gave, each explained in one line, and the checks that raise them.

A check of a single value takes a field's name and the value, and returns the value. It raises
UserError that says what the field may be. Numbers of NumPy and JAX become Python's.
"""

import ast
import difflib
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

# Packages that speak to Google Cloud Storage, and what else says that they failed.
STORE_PACKAGES = ("gcsfs", "aiohttp", "requests", "google", "fsspec")
STORE_FAILED = re.compile(r"^Forbidden|UNAVAILABLE|DEADLINE_EX|PERMISSION_DEN")

Check = Callable[[str, Any], Any]


class UserError(ValueError):
    """Bad input. Its message is one line: what is wrong, where, and what would be right."""


class NotFinite(UserError):
    """A loss, a gradient or a state that is not finite: with these settings a run cannot go on."""


class RunsFailed(UserError):
    """Some runs of a sweep failed. The others are finished, or can be."""


class Held(Exception):
    """Another process is writing to a folder; the message names the process."""


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def reason(error: BaseException) -> str:
    """Returns in one line why a file could not be read or written, locally or in a bucket."""
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removesuffix(":")[:200]


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error, its cause, the cause of its cause, and so on."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def is_store_error(error: BaseException) -> bool:
    """Tells whether an error, or its cause, says that a request to Google Cloud Storage failed.

    The libraries pass on errors of the packages that they use. TensorStore, which writes Orbax's
    arrays, raises a ValueError that names the status.
    """
    return "gcsfs" in sys.modules and any(
        type(cause).__module__.partition(".")[0] in STORE_PACKAGES
        or STORE_FAILED.search(str(cause))
        for cause in causes(error)
    )


def check_choice(value: Any, choices: Iterable[str], what: str) -> None:
    """Raises UserError unless `value` is one of `choices`; the message suggests the nearest one."""
    names = sorted(choices)
    if value in names:
        return
    nearest = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"choose one of {', '.join(names)}"
    raise UserError(f"unknown {what} {value!r}: {hint}")


def check_positive(value: float, what: str) -> None:
    """Raises UserError unless `value` is greater than zero."""
    if not value > 0:
        raise UserError(f"{what} must be greater than 0, got {value!r}")


def whole(low: int, high: int | None = None) -> Check:
    """Returns the check for a whole number from `low` to `high`."""
    wanted = f"{low} or more" if high is None else f"{low} to {high}"

    def check(field: str, value: Any) -> int:
        value = plain(value)
        if not is_whole(value, low) or (high is not None and value > high):
            raise UserError(f"{field} must be a whole number, {wanted}, got {value!r}")
        return value

    return check


def number(
    low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = True
) -> Check:
    """Returns the check for a number from `low` to `high`, each included unless it is open."""
    wanted = f"{'greater than' if low_open else 'at least'} {low:g}"
    if high < math.inf:
        wanted += f" and {'less than' if high_open else 'at most'} {high:g}"

    def check(field: str, value: Any) -> float:
        value = plain(value)
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and low <= value <= min(high, sys.float_info.max)
        if not fits or (low_open and value == low) or (high_open and value == high):
            raise UserError(f"{field} must be {wanted}, got {value!r}")
        return value

    return check


def ordered(low: float, high: float = math.inf) -> Check:
    """Returns the check for two numbers above `low` and up to `high`, the smaller one first."""
    limited = number(low, high, low_open=True, high_open=False)

    def check(field: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise UserError(f"{field} must be two numbers, the smaller one first, got {value!r}")
        first, second = (limited(field, limit) for limit in value)
        if first > second:
            raise UserError(f"{field} must have the smaller number first, got {value!r}")
        return first, second

    return check


def choice(names: Sequence[str]) -> Check:
    """Returns the check for one of `names`."""

    def check(field: str, value: Any) -> str:
        check_choice(value, names, field)
        return value

    return check


def truth(field: str, value: Any) -> bool:
    """Checks True or False."""
    if not isinstance(value := plain(value), bool):
        raise UserError(f"{field} must be True or False, got {value!r}")
    return value


def pattern(field: str, value: Any) -> str:
    """Checks a regular expression that is not empty."""
    if value == "":
        raise UserError(f"{field} must not be empty: '.' matches everything")
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise UserError(f"{field} is not a regular expression: {error}, got {value!r}") from None
    return value


def text(field: str, value: Any) -> str:
    """Checks a text that is not empty, such as a name or a path."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{field} must be a text that is not empty, got {value!r}")
    return value


def call(field: str, value: Any) -> tuple[str, dict[str, Any]]:
    """Checks a name with named arguments, as `adamw(b2=0.95)`; returns both."""
    try:
        tree = ast.parse(value.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            return tree.func.id, {keyword.arg or "**": ast.literal_eval(keyword.value)
                                  for keyword in tree.keywords}  # fmt: skip
    except (SyntaxError, ValueError, TypeError, AttributeError):
        pass
    raise UserError(f"{field} must be like adamw(b2=0.95), got {value!r}")


def plain(value: Any) -> Any:
    """Returns a single number of NumPy or JAX as one of Python, and anything else as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def is_whole(value: Any, low: int) -> bool:
    """Tells whether a value is a whole number, `low` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
