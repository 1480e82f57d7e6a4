"""Errors in what a user gave, each explained in one line."""

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any

# Packages that speak to Google Cloud Storage, and what else says that they failed.
STORE_PACKAGES = ("gcsfs", "aiohttp", "requests", "google", "fsspec")
STORE_FAILED = re.compile(r"^Forbidden|UNAVAILABLE|DEADLINE_EX|PERMISSION_DEN")


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
        type(one).__module__.partition(".")[0] in STORE_PACKAGES or STORE_FAILED.search(str(one))
        for one in causes(error)
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
