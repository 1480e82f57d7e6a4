"""What each field of a network may be, in one table for all networks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mnv2.models import mobilenet_v2
from mnv2.ops.padding import CONVENTIONS
from mnv2.runtime.errors import (
    Check,
    UserError,
    check_choice,
    choice,
    is_whole,
    number,
    plain,
    truth,
    whole,
)

DTYPES = ("float32", "bfloat16", "float16", "float64")


def several(field: str, value: Any) -> tuple[int, ...]:
    """Checks whole numbers of 1 or more, such as strides; their number is checked elsewhere."""
    numbers = _whole_numbers(value, 1)
    if numbers is None:
        raise UserError(f"{field} must be whole numbers of 1 or more, got {value!r}")
    return numbers


def rows(field: str, value: Any) -> tuple[int, ...]:
    """Checks the numbers of blocks in the rows of a network; all but the first may be 0."""
    numbers = _whole_numbers(value, 0)
    if not numbers or not numbers[0]:
        raise UserError(
            f"{field} must be whole numbers, the first of them 1 or more, got {value!r}"
        )
    return numbers


def _whole_numbers(value: Any, low: int) -> tuple[int, ...] | None:
    try:
        numbers = None if isinstance(value, str) else tuple(map(plain, value))
    except TypeError:  # a single number, or None
        return None
    return numbers if numbers is not None and all(is_whole(x, low) for x in numbers) else None


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
    "rounding": choice(mobilenet_v2.ROUNDINGS),
    "expansion": number(0, low_open=True),
    "activation": choice(sorted(mobilenet_v2.ACTIVATIONS)),
    "bottleneck": choice(mobilenet_v2.BOTTLENECKS),
    "shortcut": choice(mobilenet_v2.SHORTCUTS),
    "block": choice(mobilenet_v2.BLOCKS),
    "repeats": rows,
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
