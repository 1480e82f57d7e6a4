"""Checks of single values: each takes a field's name and its value, and returns the value.

Each raises UserError that says what the field may be. Numbers of NumPy and JAX become Python's.
"""

import ast
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from mnv2.runtime.errors import UserError, check_choice

Check = Callable[[str, Any], Any]


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
        fits = fits and math.isfinite(value) and low <= value <= high
        if not fits or (low_open and value == low) or (high_open and value == high):
            raise UserError(f"{field} must be {wanted}, got {value!r}")
        return value

    return check


def ordered(low: float, high: float = math.inf) -> Check:
    """Returns the check for two numbers above `low` and up to `high`, the smaller one first."""
    one = number(low, high, low_open=True, high_open=False)

    def check(field: str, value: Any) -> tuple[float, float]:
        if not isinstance(value, tuple | list) or len(value) != 2:
            raise UserError(f"{field} must be two numbers, the smaller one first, got {value!r}")
        first, second = (one(field, limit) for limit in value)
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
            return tree.func.id, {one.arg or "**": ast.literal_eval(one.value)
                                  for one in tree.keywords}  # fmt: skip
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
