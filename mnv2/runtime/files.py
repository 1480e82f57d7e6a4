"""Small files, written so that a kill at any moment leaves the old file or the new file, whole."""

import contextlib
import errno
import functools
import json
import math
import os
import platform
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mnv2.runtime import lease, storage
from mnv2.runtime.errors import Held, UserError
from mnv2.runtime.layout import LOCK
from mnv2.runtime.storage import AnyPath

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

GLANCE = 0.1  # seconds that `holder` may keep a lock for
UNFINISHED = ".unfinished"  # the end of the name of a file that is being written
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


@functools.cache
def warn_once(message: str) -> None:
    """Prints a warning to stderr, the first time that this process has this one."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def caches() -> Path | None:
    """Returns the folder for files that can be made again.

    None, after a warning, if there is no such folder in which this user can write.
    """
    try:
        chosen = os.environ.get("XDG_CACHE_HOME")
        folder = (Path(chosen) if chosen else Path.home() / ".cache") / "mnv2"
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder)
        return folder
    except RuntimeError:  # from Path.home
        reason = "this user has no home folder"
    except OSError as error:
        reason = f"cannot write to {folder}: {error.strerror}"
    warn_once(f"nothing is cached, because {reason}; XDG_CACHE_HOME chooses another folder")
    return None


def check_writable(folder: Path) -> None:
    """Raises OSError if no file can be written in a folder; leaves nothing there."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def read_cache(name: str) -> dict[str, Any]:
    """Reads what `write_cache` kept under a name such as `pictures/abc.json`; {} if nothing."""
    folder = caches()
    try:
        return {} if folder is None else read_json(folder / name, "it is written again")
    except UserError:  # missing or damaged: it can be made again
        return {}


def write_cache(name: str, value: dict[str, Any]) -> None:
    """Keeps a value for the next command, if there is a folder for it."""
    if folder := caches():
        try:
            write_json(folder / name, value)
        except OSError as error:
            warn_once(f"cannot write to {folder}: {error.strerror}; nothing more is cached")


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Yields a new path in the same folder; what was written there then becomes `path`.

    After an error it is removed. Each writer has a path of its own, so that several can write the
    same file at the same time; the last one wins. On an object store the new path is a local one,
    and an object becomes `path` without a rename.
    """
    if storage.is_object(path):
        with tempfile.TemporaryDirectory() as scratch:
            yield (local := Path(scratch, path.name))
            storage.write(path, local.read_bytes())
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("xb"):
            pass
        yield unfinished
        with unfinished.open("rb+") as file:  # on the disk before it has its name
            _sync(file)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _sync(file: IO[bytes]) -> None:
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # it cannot sync
            raise


def write_text(path: AnyPath, text: str) -> None:
    """Replaces a file, whole or not at all.

    Names of files that are no UTF-8 are written with the bytes that they have.
    """
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a pair, which no file's name has
        content = text.encode("utf-8", "replace")
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


def to_json(value: Any, indent: int | None = None) -> str:
    """Formats `value` as JSON. Raises UserError for a number that JSON has no word for."""
    for where, number in _numbers(value, ""):
        if not math.isfinite(number):
            raise UserError(f"{where or 'the value'} is {number}, which is not a finite number")
    return json.dumps(value, indent=indent, allow_nan=False)


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Lists the floating-point numbers in `value`, with the keys that lead there."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _numbers(item, f"{where}[{i}]")
    elif isinstance(value, float):
        yield where, value


def write_json(path: AnyPath, value: Any) -> None:
    """Replaces a file by `value` as indented JSON, whole or not at all.

    Raises UserError, and leaves the file as it was, for a number that is not finite.
    """
    try:
        text = to_json(value, indent=2)
    except UserError as error:
        raise UserError(f"cannot write {path}: {error}") from None
    write_text(path, text + "\n")


def read_json(path: AnyPath, remedy: str) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Raises UserError if the file is damaged; the message ends with `remedy`, which says what to do.
    """
    try:
        text = storage.read(path).decode("utf-8")
        if not text.strip():
            raise ValueError("it is empty")
        value = json.loads(text, parse_constant=_refuse)
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__} and no object")
    except OSError as error:
        raise UserError(f"cannot read {path}: {storage.reason(error)}; {remedy}") from error
    except RecursionError:
        raise UserError(f"{path} is damaged (it is nested too deep): {remedy}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged (it is no text): {remedy}") from None
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path} is damaged (it is no JSON at {at}): {remedy}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def read_lines(path: AnyPath) -> list[dict[str, Any]]:
    """Reads a file with one JSON object per line; [] if there is none.

    A last line without its end is left out: it is being written. Raises UserError if any other line
    is damaged.
    """
    try:
        raw = storage.read(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {storage.reason(error)}") from error
    lines = raw.split(b"\n")[:-1]
    return [_object(path, number, line) for number, line in enumerate(lines, start=1)]


def _object(path: AnyPath, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError):  # also if it is no text
        value = None
    if not isinstance(value, dict):
        raise damaged_line(path, number)
    return value


def damaged_line(path: AnyPath, number: int) -> UserError:
    """Returns the error that a line of metrics is damaged."""
    return UserError(
        f"line {number} of {path} is damaged: delete that line, or the folder of the run to start "
        "it from the beginning"
    )


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def keep_lines(path: AnyPath, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Drops the objects that are not `wanted`, and a last line that was cut short.

    Raises UserError, and leaves the file as it was, if any other line is damaged.
    """
    if path.exists():
        kept = []
        for number, values in enumerate(read_lines(path), start=1):
            try:
                if wanted(values):
                    kept.append(to_json(values) + "\n")
            except (KeyError, TypeError) as error:
                raise damaged_line(path, number) from error
        write_text(path, "".join(kept))


@contextlib.contextmanager
def locked(path: AnyPath) -> Iterator[None]:
    """Holds a lock file, after waiting for the process that holds it. It ends with the process.

    Without a lock, after a warning, where the file system has none, and without a warning on an
    object store.
    """
    if storage.is_object(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        _lock(file, wait=True)
        yield


@contextlib.contextmanager
def sole_writer(folder: AnyPath) -> Iterator[None]:
    """Keeps other processes out of a folder. Raises Held if another process is writing there.

    The operating system releases the lock when its process ends, for whatever reason. Without a
    lock, after a warning, where the file system has none. An object store has leases instead.
    """
    if storage.is_object(folder):
        with lease.held(folder):
            yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        if not _lock(file):
            time.sleep(GLANCE)  # it may only be `holder`, which looks for an instant
            if not _lock(file):
                file.seek(0)
                raise Held(file.read().strip() or "another process")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        for left in folder.glob(f"*{UNFINISHED}"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        yield


def holder(folder: AnyPath) -> str | None:
    """Returns which process is writing to a folder; None if none is."""
    if storage.is_object(folder):
        return lease.holder(folder)
    path = folder / LOCK
    try:
        with path.open(encoding="utf-8") as file:
            if _lock(file, shared=True):
                return None
            return file.read().strip() or "another process"
    except FileNotFoundError:
        return None
    except OSError as error:
        warn_once(f"cannot tell whether a process writes to {folder}: {error.strerror}")
        return None


def _lock(file: IO[str], *, wait: bool = False, shared: bool = False) -> bool:
    """Locks a file until it is closed; False if another process has it.

    True, after a warning, where there are no locks.
    """
    if fcntl is None:
        _warn_no_locks("this operating system has no locks")
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        _warn_no_locks(f"their file system has no locks ({error.strerror})")
    return True


def _warn_no_locks(reason: str) -> None:
    warn_once(
        f"files are not locked, because {reason}: do not start a command twice at the same time; "
        "mnv2.status cannot tell which runs are running"
    )
