"""Writing small files so that a kill at any moment leaves the old one or the new one, whole."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file at once by `value` as indented JSON."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file."""
    with path.open("a") as file:
        file.write(line + "\n")


def keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drops the lines of a file that are not `wanted`, and one that was cut short."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if line.endswith("\n") and wanted(line)))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of that name, waiting for whoever holds it; it ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
