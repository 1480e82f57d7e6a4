"""Paths, the folders that a user names, and small files.

A kill at any moment leaves the old file or the new file, whole. The paths are those of etils.epath,
which have the methods of pathlib, on this machine as on Google Cloud Storage.
"""

import contextlib
import difflib
import errno
import functools
import glob
import hashlib
import importlib.util
import json
import math
import os
import platform
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from etils import epath

from mnv2.runtime.errors import Held, UserError, reason
from mnv2.runtime.layout import LOCK
from mnv2.runtime.terminal import note_once, printable, warn_once

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

type AnyPath = Path | epath.Path  # commands make an epath.Path of what they are given

SCHEME = "gs://"
# s3://bucket, and s3:/bucket, which Path makes of it; but no drive of Windows.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# gs://BUCKET/FOLDER, without the signs that gcsfs reads as patterns or versions.
ADDRESS = re.compile(
    r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/(?!\.{1,2}(/|$))[^/*?\[\]#\r\n]+)+/?"
)
# How epath's library speaks to the bucket, if FSSPEC_GCS does not say otherwise: its listings would
# miss what Orbax writes, and without credentials it would go on without a name.
REQUESTS = {"token": "google_default", "use_listings_cache": False, "requests_timeout": 30}
PICTURES = (".png", ".jpg", ".pdf", ".svg")  # endings of the files that commands draw to
GLANCE = 0.1  # seconds that `holder` may keep a lock for
UNFINISHED = ".unfinished"  # the end of the name of a file that is being written
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


def as_path(text: str | AnyPath) -> epath.Path:
    """Returns the path of a local file or folder, or of an address `gs://...`.

    Wherever a path is made from text, this function makes it: it also prepares this process, and
    those that it starts, for Google Cloud Storage. Raises UserError if a package is missing.
    """
    if in_bucket(text):
        _prepare_for_buckets()
    return epath.Path(text if in_bucket(text) else Path(text))


def in_bucket(path: str | AnyPath) -> bool:
    """Tells whether a path is in a bucket: there are no renames, appends, locks and disks."""
    return str(path).startswith(SCHEME)


@functools.cache
def _prepare_for_buckets() -> None:
    """Lets epath use gcsfs, by environment variables, which processes inherit.

    Raises UserError if gcsfs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            'Google Cloud Storage needs another package: pip install ".[gcs]" in a checkout of mnv2'
        )
    os.environ["EPATH_USE_TF"] = "false"  # TensorFlow's client knows no emulator
    # Asking for the kind of the bucket needs gRPC and one more permission.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    os.environ.setdefault("FSSPEC_GCS", json.dumps(REQUESTS))
    import fsspec
    from etils.epath import gpath

    fsspec.config.set_conf_env(fsspec.config.conf)  # both may have looked before
    gpath._is_tf_installed.cache_clear()


def absolute(path: AnyPath) -> AnyPath:
    """Returns an absolute path. Of an address, epath would make a folder of this machine."""
    return path if in_bucket(path) else path.absolute()


def matches(folder: AnyPath, pattern: str) -> list[epath.Path]:
    """Lists what matches a pattern in a folder, whose own name may have the signs of patterns."""
    return sorted(epath.Path(glob.escape(str(folder))).glob(pattern))


def given_folder(text: str, what: str) -> epath.Path:
    """Returns the folder that a user gave, with ~ replaced; it need not exist.

    `what` names it in messages, such as `--workdir`. Raises UserError if it can be no folder of
    this machine, and no folder `gs://BUCKET/FOLDER` in a bucket that can be read.
    """
    if not text.strip():
        raise UserError(f"{what} is empty: give a folder, such as runs/first")
    if printable(text) != text:
        raise UserError(
            f"{what} {text} has a name that is no UTF-8, with which the libraries that write there "
            "cannot work: rename it"
        )
    if URL.match(text) and not ADDRESS.fullmatch(text):
        raise UserError(
            f"{what} {text} is an address and no gs://BUCKET/FOLDER: a bucket has 3 or more "
            "lower-case letters, digits, -, _ and .; a folder is without //, ., .. and the signs "
            "* ? [ ] #. Other storage may be mounted in this machine's file system"
        )
    folder = as_path(text).expanduser()
    if str(folder).startswith("~"):
        raise UserError(f"{what} {text}: there is no such home folder")
    try:
        is_file = folder.exists() and not folder.is_dir()
    except Exception as error:  # gcsfs raises many types
        raise UserError(f"cannot use {what} {text}: {reason(error)}") from error
    if is_file:
        raise UserError(f"{what} {text} is a file: give a folder")
    return folder


def did_you_mean(path: AnyPath) -> str:
    """Returns `: did you mean PATH?` with the nearest path that exists; '' if none is near."""
    if in_bucket(path):
        return ""
    wrong = next(folder for folder in (path, *path.parents) if folder.parent.is_dir())
    with contextlib.suppress(OSError):  # a folder that cannot be read
        names = [folder.name for folder in wrong.parent.iterdir()]
        for name in difflib.get_close_matches(wrong.name, names, n=1):
            if (found := wrong.parent / name / path.relative_to(wrong)).exists():
                return f": did you mean {found}?"
    return ""


def check_can_be_written(folder: AnyPath, what: str) -> None:
    """Raises UserError unless files can be written in a folder, which need not exist yet.

    Leaves nothing there. Notes that a folder in a bucket is for one machine, or for those that
    one command joins.
    """
    try:
        if in_bucket(folder):
            note_once("other machines are not kept out of a folder in a bucket: use it on one only")
            probe = folder / f".writable-{uuid.uuid4().hex}"
            probe.write_bytes(b"")
            probe.unlink()
            return
        existing = next(above for above in (folder, *folder.absolute().parents) if above.exists())
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{existing} is a file")
        check_writable(existing)
    except Exception as error:  # gcsfs raises many types
        raise UserError(f"cannot write to {what} {folder}: {reason(error)}") from error


def check_file(path: Path, endings: Sequence[str], what: str) -> None:
    """Raises UserError unless a file with one of these endings can be written; `what` names it."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{what} {path} must end in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{what} {path} is a folder: give a file")
    check_can_be_written(path.parent, f"the folder of {what}")


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


def check_writable(folder: AnyPath) -> None:
    """Raises OSError if no file can be written in a folder; leaves nothing there."""
    with tempfile.TemporaryFile(dir=folder):
        pass


def read_cache(name: str) -> dict[str, Any]:
    """Reads the JSON that `write_cache` kept, as `pictures/abc.json`; {} if there is none."""
    folder = caches()
    try:
        return {} if folder is None else read_json(folder / name, "it is written again")
    except UserError:  # missing or damaged: it can be made again
        return {}


def write_cache(name: str, write: Callable[[Path], Any]) -> None:
    """Lets `write` write a file that is kept for later commands, if there is a folder for it."""
    if folder := caches():
        try:
            with replacing(folder / name) as unfinished:
                write(unfinished)
        except OSError as error:
            warn_once(f"cannot write to {folder}: {error.strerror}; nothing more is cached")


@contextlib.contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Yields a new path in the same folder; what was written there then becomes `path`.

    After an error it is removed. Each writer has a path of its own, so that several can write the
    same file at the same time; the last one wins. A bucket, which has no renames, gets the file in
    one write.
    """
    if in_bucket(path):
        with tempfile.TemporaryDirectory() as scratch:
            yield (local := Path(scratch, path.name))
            path.write_bytes(local.read_bytes())
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
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
    write_text(path, to_json(value, indent=2) + "\n")


def read_json(path: AnyPath, remedy: str) -> dict[str, Any]:
    """Reads an object from a JSON file.

    Raises UserError if the file is damaged; the message ends with `remedy`, which says what to do.
    """
    try:
        return _object(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None


def _object(text: bytes) -> dict[str, Any]:
    """Reads a JSON object. Raises ValueError or RecursionError for anything else."""
    value = json.loads(text, parse_constant=_refuse)
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__} and no object")
    return value


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}")


def read_lines(path: AnyPath) -> list[dict[str, Any]]:
    """Reads a file with one JSON object per line; [] if there is none.

    A last line without its end is left out: it is being written. Raises UserError if any other line
    is damaged.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    values = []
    for number, line in enumerate(raw.split(b"\n")[:-1], start=1):
        try:
            values.append(_object(line))
        except (ValueError, RecursionError):
            raise damaged_line(path, number) from None
    return values


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

    Without a lock, after a warning, where the file system has none.
    """
    lock_file = _lock_file(path)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("a", encoding="utf-8") as file:
        _lock(file, wait=True)
        yield


def _lock_file(path: AnyPath) -> Path:
    """Returns where the lock file `path` is: one in a bucket, on this machine."""
    if not in_bucket(path):
        return Path(path)
    user = os.getuid() if hasattr(os, "getuid") else "all"
    address = hashlib.sha256(str(path.parent).encode()).hexdigest()
    return Path(tempfile.gettempdir(), f"mnv2-locks-{user}", address, path.name)


@contextlib.contextmanager
def sole_writer(folder: AnyPath) -> Iterator[None]:
    """Keeps other processes out of a folder. Raises Held if another process is writing there.

    The operating system releases the lock when its process ends, for whatever reason. Without a
    lock, after a warning, where the file system has none. In a bucket, processes of other machines
    are not kept out.
    """
    lock_file = _lock_file(folder / LOCK)
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("a+", encoding="utf-8") as file:
        if not _lock(file):
            time.sleep(GLANCE)  # it may only be `holder`, which looks for an instant
            if not _lock(file):
                file.seek(0)
                raise Held(file.read().strip() or "another process")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        for left in lock_file.parent.glob(f"*{UNFINISHED}"):  # by a writer that was killed
            left.unlink(missing_ok=True)
        yield


def holder(folder: AnyPath) -> str | None:
    """Returns which process is writing to a folder; None if none is."""
    try:
        with _lock_file(folder / LOCK).open(encoding="utf-8") as file:
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


class Growing:
    """Files that grow, for a folder that may be in a bucket, where nothing can be appended to.

    They are written in `here`, which is the folder itself if it is on this machine, and otherwise a
    temporary one, whose files `store` copies to the bucket.
    """

    def __init__(self, folder: AnyPath):
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory() if in_bucket(folder) else None
        self.here = Path(self._scratch.name if self._scratch else folder)
        self._sizes: dict[str, int] = {}

    def fetch(self, name: str) -> None:
        """Copies the file of this name, if there is one, to `here`."""
        if self._scratch and (stored := self._folder / name).exists():
            (self.here / name).write_bytes(stored.read_bytes())

    def store(self) -> None:
        """Copies the files that have grown to the folder."""
        for file in sorted(self.here.iterdir()) if self._scratch else ():
            content = file.read_bytes()
            if self._sizes.get(file.name) != len(content):
                (self._folder / file.name).write_bytes(content)
                self._sizes[file.name] = len(content)

    def close(self) -> None:
        """Copies what has grown, and removes the temporary folder."""
        self.store()
        if self._scratch:
            self._scratch.cleanup()
