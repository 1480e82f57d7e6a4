"""Small files, written so that a kill at any moment leaves the old file or the new file, whole."""

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mnv2.runtime.layout import LOCK

GLANCE = 0.1  # seconds that `holder` may keep a lock for


class Held(Exception):
    """Another process is writing to a folder; the message names the process."""


def caches() -> Path:
    """Returns the folder for files that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnv2"


def write_text(path: Path, text: str) -> None:
    """Replaces a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file by `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file."""
    with path.open("a") as file:
        file.write(line + "\n")


def keep_lines(path: Path, wanted: Callable[[str], bool]) -> None:
    """Drops the lines of a file that are not `wanted`, and a last line that was cut short."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        write_text(path, "".join(line for line in lines if line.endswith("\n") and wanted(line)))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, after waiting for the process that holds it. It ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder. Raises Held if another process is writing there.

    The operating system releases the lock when its process ends, for whatever reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+") as file:
        if not _lock(file):
            time.sleep(GLANCE)  # it may only be `holder`, which looks for an instant
            if not _lock(file):
                file.seek(0)
                raise Held(file.read().strip() or "another process")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(folder: Path) -> str | None:
    """Returns which process is writing to a folder; None if none is."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        return (folder / LOCK).read_text().strip() or "another process"
    except FileNotFoundError:
        return None
