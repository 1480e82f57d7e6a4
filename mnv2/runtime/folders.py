"""Folders that a user names, checked before anything starts."""

import re
from collections.abc import Sequence
from pathlib import Path

from mnv2.runtime import storage
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import check_writable
from mnv2.runtime.storage import AnyPath
from mnv2.runtime.terminal import printable

PICTURES = (".png", ".jpg", ".pdf", ".svg")  # endings of the files that commands draw to

# s3://bucket, and s3:/bucket, which Path makes of it; but no drive of Windows.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# The names that GCS allows for a bucket. In the name of an object, gcsfs reads some signs as
# patterns or versions.
BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/.*)?")
FOLDER = re.compile(r"(/[^/*?\[\]#\r\n]+)+/?")


def given_folder(text: str, what: str) -> AnyPath:
    """Returns the folder that a user gave, with ~ replaced; it need not exist.

    `what` names it in messages, such as `--workdir`. Raises UserError if it can be no folder of
    this machine, and no folder `gs://BUCKET/FOLDER` in a bucket that can be read.
    """
    if not text.strip():
        raise UserError(f"{what} is empty: give a folder, such as runs/first")
    if text.startswith(storage.SCHEME):
        return _in_bucket(text, what)
    if printable(text) != text:
        raise UserError(
            f"{what} {text} has a name that is no UTF-8, with which the libraries that write there "
            "cannot work: rename it"
        )
    if URL.match(text):
        raise UserError(
            f"{what} {text} is an address: give gs://BUCKET/FOLDER, or a folder of this machine's "
            "file system, where other storage may be mounted"
        )
    try:
        folder = Path(text).expanduser()
        exists = folder.exists()
    except RuntimeError as error:
        raise UserError(f"{what} {text}: there is no such home folder") from error
    except OSError as error:
        raise UserError(f"cannot use {what} {text}: {error.strerror}") from error
    if exists and not folder.is_dir():
        raise UserError(f"{what} {text} is a file: give a folder")
    return folder


def _in_bucket(text: str, what: str) -> AnyPath:
    """Returns a folder on Google Cloud Storage. Raises UserError if it cannot be one."""
    bucket = BUCKET.fullmatch(text)
    if not bucket:
        raise UserError(
            f"{what} {text} names no bucket: give gs://BUCKET/FOLDER; the name of a bucket has 3 "
            "or more lower-case letters, digits, -, _ and ."
        )
    names = bucket[1] or ""
    if not FOLDER.fullmatch(names) or {".", ".."} & set(names.split("/")):
        raise UserError(
            f"{what} {text} names no folder in the bucket: give gs://BUCKET/FOLDER, without //, "
            "., .. and the signs * ? [ ] #"
        )
    storage.connect()
    folder = storage.as_path(text)
    storage.check_listable(folder, what)
    return folder


def check_can_be_written(folder: AnyPath, what: str) -> None:
    """Raises UserError unless files can be written in a folder, which need not exist yet."""
    if storage.is_object(folder):
        return storage.check_writable(folder, what)
    try:
        existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{existing} is a file")
        check_writable(existing)
    except OSError as error:
        raise UserError(f"cannot write to {what} {folder}: {error.strerror}") from error


def check_file(path: Path, endings: Sequence[str], what: str) -> None:
    """Raises UserError unless a file with one of these endings can be written; `what` names it."""
    if path.suffix.lower() not in endings:
        raise UserError(f"{what} {path} must end in {' or '.join(endings)}")
    if path.is_dir():
        raise UserError(f"{what} {path} is a folder: give a file")
    check_can_be_written(path.parent, f"the folder of {what}")
