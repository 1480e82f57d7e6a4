"""Errors in what a user gave, each explained in one line."""

import difflib
from collections.abc import Iterable
from typing import Any


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
