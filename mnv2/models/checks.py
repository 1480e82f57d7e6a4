"""What each field of a network may be, in one table for all networks."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnv2.ops.padding import CONVENTIONS
from mnv2.runtime.errors import UserError, check_choice

DTYPES = ("float32", "bfloat16", "float16", "float64")

Check = Callable[[str, Any], Any]  # from a field and its value to the value as networks take it


def number(low: float, high: float = math.inf, *, low_open: bool = False) -> Check:
    """Returns the check for a number from `low` to below `high`; above `low` if `low_open`."""
    wanted = f"{'greater than' if low_open else 'at least'} {low:g}"
    if high < math.inf:
        wanted += f" and less than {high:g}"

    def check(field: str, value: Any) -> float:
        value = _plain(value)
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and low <= value < high
        if not fits or (low_open and value == low):
            raise UserError(f"{field} must be {wanted}, got {value!r}")
        return value

    return check


def whole(low: int) -> Check:
    """Returns the check for a whole number of `low` or more."""

    def check(field: str, value: Any) -> int:
        if not _is_whole(value := _plain(value), low):
            raise UserError(f"{field} must be a whole number of {low} or more, got {value!r}")
        return value

    return check


def several(field: str, value: Any) -> tuple[int, ...]:
    """Checks whole numbers of 1 or more, such as strides; their number is checked elsewhere."""
    try:
        numbers = None if isinstance(value, str) else tuple(map(_plain, value))
    except TypeError:  # a single number, or None
        numbers = None
    if numbers is None or not all(_is_whole(one, 1) for one in numbers):
        raise UserError(f"{field} must be whole numbers of 1 or more, got {value!r}")
    return numbers


def truth(field: str, value: Any) -> bool:
    """Checks True or False."""
    if not isinstance(value := _plain(value), bool):
        raise UserError(f"{field} must be True or False, got {value!r}")
    return value


def convention(field: str, value: Any) -> str:
    """Checks the name of a padding convention."""
    check_choice(value, CONVENTIONS, f"{field} convention")
    return value


def dtype(field: str, value: Any) -> jnp.dtype:
    """Checks the type of a computation, given as a name or as a type."""
    try:
        name = jnp.dtype(value).name
    except TypeError:
        name = str(value)
    check_choice(name, DTYPES, field)
    if name == "float64" and not jax.config.jax_enable_x64:
        raise UserError("dtype float64 needs JAX_ENABLE_X64=1: otherwise JAX computes in float32")
    return jnp.dtype(name)


CHECKS: dict[str, Check] = {
    "num_classes": whole(0),
    "width": number(0, low_open=True),
    "expansion": number(0, low_open=True),
    "repeats": several,
    "splits": several,
    "strides": several,
    "dropout": number(0, 1),
    "padding": convention,
    "bn_momentum": number(0, 1),
    "bn_epsilon": number(0, low_open=True),
    "bn_frozen": truth,
    "xception": truth,
    "dtype": dtype,
}
AS_MANY_AS_DEFAULT = ("repeats", "strides")


def checked(fields: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a network as it takes them: tuples, Python's numbers, a JAX type.

    `defaults` are the values of a network's class. Raises UserError for a value with which no
    network can be built.
    """
    result = {
        field: CHECKS[field](field, value) if field in CHECKS else value
        for field, value in fields.items()
    }
    for field in AS_MANY_AS_DEFAULT:
        if field in result and len(result[field]) != (count := len(defaults[field])):
            example = ", ".join(map(str, defaults[field]))
            names = ", or imagenet or small" if field == "strides" else ""
            raise UserError(
                f"{field} must be {count} numbers, got {result[field]}; such as {example}{names}"
            )
    return result


def _plain(value: Any) -> Any:
    """Returns a number of NumPy or JAX as one of Python."""
    if isinstance(value, np.generic | np.ndarray | jax.Array) and not np.ndim(value):
        return value.item()
    return value


def _is_whole(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
