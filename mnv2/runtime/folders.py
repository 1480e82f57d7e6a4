"""Folders that a user names, checked before anything starts."""

import re
from pathlib import Path

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import check_writable

# gs://bucket, and gs:/bucket, which Path makes of it; but no drive of Windows.
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def given_folder(text: str, what: str) -> Path:
    """Returns the folder that a user gave, with ~ replaced; it need not exist.

    `what` names it in messages, such as `--workdir`. Raises UserError if it can be no folder of
    this machine.
    """
    if not text.strip():
        raise UserError(f"{what} is empty: give a folder, such as runs/first")
    if URL.match(text):
        raise UserError(
            f"{what} {text} is an address: give a folder of this machine's file system, "
            "where the storage may be mounted"
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


def check_can_be_written(folder: Path, what: str) -> None:
    """Raises UserError unless files can be written in a folder, which need not exist yet."""
    try:
        existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{existing} is a file")
        check_writable(existing)
    except OSError as error:
        raise UserError(f"cannot write to {what} {folder}: {error.strerror}") from error
