"""Folders on Google Cloud Storage (GCS): what an object store does otherwise than a file system.

An object is replaced in one request, whole or not at all, so nothing is renamed. It cannot be
appended to: see `Mirror`. It cannot be locked: see `lease`. Folders need not be made.

The paths are those of etils.epath, which have the methods of pathlib. All requests except those of
Orbax's arrays go through gcsfs.
"""

import functools
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from etils import epath
from etils.epath import gpath

from mnv2.runtime.errors import UserError

type AnyPath = Path | epath.Path  # a folder or file of this machine, or one on GCS
SCHEME = "gs://"
PATIENCE = 20.0  # seconds until a bucket counts as out of reach
# Seconds between two uploads of a file that grows. Each upload sends the whole file, on the thread
# that trains: 0.1 s per minute. A line of metrics has 300 bytes, so a run with 15,000 lines (150
# epochs of ImageNet) sends 4 MB a minute at its end.
STORE_EVERY = 60.0


def as_path(text: str) -> AnyPath:
    """Returns the path of an address `gs://...` or of a local file."""
    return epath.Path(text) if text.startswith(SCHEME) else Path(text)


def is_object(path: AnyPath) -> bool:
    """Tells whether a path is on GCS."""
    return str(path).startswith(SCHEME)


def absolute(path: AnyPath) -> AnyPath:
    """Returns an absolute path. Of an address, epath would make a folder of this machine."""
    return path if is_object(path) else path.absolute()


@functools.cache
def connect() -> None:
    """Prepares this process for paths on GCS; must be called before the first one is used.

    Sets environment variables that epath, gcsfs and tensorstore, which writes Orbax's arrays, read
    in this process. Raises UserError if the package that GCS needs is not installed.
    """
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            'Google Cloud Storage needs another package: pip install ".[gcs]" in a checkout of mnv2'
        )
    import fsspec
    from gcsfs.core import GCSFileSystem

    # By default epath uses TensorFlow's client. It knows no emulator, so it could not be tested.
    os.environ["EPATH_USE_TF"] = "false"
    gpath._is_tf_installed.cache_clear()  # epath may have looked before, for a local path
    # The default class asks for the kind of a bucket, which needs gRPC and one more permission.
    for protocol in ("gs", "gcs"):
        fsspec.register_implementation(protocol, GCSFileSystem, clobber=True)
    # Listings would miss what tensorstore and other processes write. Without credentials gcsfs
    # would go on without a name, and fail later.
    options = {"use_listings_cache": False, "token": "google_default"}
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        options["token"] = "anon"
        address = emulator if "://" in emulator else f"http://{emulator}"
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", address)
    fsspec.config.conf.setdefault("gcs", {}).update(options)


def filesystem() -> Any:
    """Returns the gcsfs that epath uses too."""
    import fsspec

    return fsspec.filesystem("gcs", finalize_on_close=True)


def split(path: AnyPath) -> tuple[str, str]:
    """Returns the bucket of a path on GCS, and the name of the object in it."""
    bucket, _, name = str(path).removeprefix(SCHEME).partition("/")
    return bucket, name


def check_listable(folder: AnyPath, what: str) -> None:
    """Raises UserError, with `what` and the folder, unless the objects in it can be listed."""
    bucket, name = split(folder)
    try:
        filesystem().call(
            "GET", "b/{}/o", bucket, prefix=f"{name}/", maxResults=1, timeout=PATIENCE
        )
        existing = filesystem().call(
            "GET", "b/{}/o", bucket, prefix=name, delimiter="/", json_out=True, timeout=PATIENCE
        )
    except Exception as error:  # of many types, see is_store_error
        raise UserError(f"cannot use {what} {folder}: {explain(error, bucket)}") from error
    if any(one["name"] == name for one in existing.get("items", [])):
        raise UserError(f"{what} {folder} is an object: give a folder")


def check_writable(folder: AnyPath, what: str) -> None:
    """Raises UserError unless objects can be written and deleted in a folder; leaves none."""
    probe = folder / f".writable-{os.getpid()}-{time.time_ns()}"
    try:
        filesystem().pipe_file(str(probe), b"")
        filesystem().rm_file(str(probe))
    except Exception as error:
        reason = explain(error, split(folder)[0])
        raise UserError(f"cannot write to {what} {folder}: {reason}") from error


def explain(error: BaseException, bucket: str) -> str:
    """Returns in one line why a request to GCS failed, and what to do."""
    if isinstance(error, FileNotFoundError):
        return f"there is no bucket {bucket}: gcloud storage buckets create gs://{bucket} makes one"
    if type(error).__module__.startswith("google.auth") or getattr(error, "code", None) == 401:
        return (
            "there are no valid credentials: run gcloud auth application-default login, or set "
            "GOOGLE_APPLICATION_CREDENTIALS to the key file of a service account"
        )
    if "Forbidden" in str(error):
        return (
            "these credentials are not permitted to: they need the role Storage Object User "
            f"(roles/storage.objectUser) on the bucket {bucket}"
        )
    if isinstance(error, TimeoutError):
        return f"Google Cloud Storage does not answer within {PATIENCE:.0f} s"
    return reason(error)


def reason(error: BaseException) -> str:
    """Returns why a file could not be read or written: few errors of GCS have a `strerror`."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


def is_store_error(error: BaseException) -> bool:
    """Tells whether an error, or its cause, says that a request to GCS failed.

    gcsfs passes on the errors of the packages that it uses. Tensorstore raises a ValueError that
    names the status and the request.
    """
    if "gcsfs" not in sys.modules:
        return False
    seen: BaseException | None = error
    while seen is not None:
        package = type(seen).__module__.partition(".")[0]
        if package in ("gcsfs", "aiohttp", "requests", "google", "fsspec"):
            return True
        if isinstance(seen, OSError) and str(seen).startswith("Forbidden"):
            return True
        if any(status in str(seen) for status in ("UNAVAILABLE", "DEADLINE_EX", "PERMISSION_DEN")):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def read(path: AnyPath) -> bytes:
    """Returns the content of a file or an object; an object in one request, so that it is whole.

    The methods of epath ask for an object's size first. What is replaced between the two requests
    is then cut off at the old size.
    """
    return filesystem().cat_file(str(path)) if is_object(path) else path.read_bytes()


def write(path: AnyPath, content: bytes) -> None:
    """Replaces an object in one request: a kill leaves the old one or the new one, whole."""
    filesystem().pipe_file(str(path), content)


def move(source: AnyPath, target: AnyPath) -> None:
    """Moves a folder. On GCS its objects are copied and then deleted, so that a kill loses none."""
    if is_object(source):
        filesystem().copy(f"{source}/", f"{target}/", recursive=True)
        filesystem().rm(str(source), recursive=True)
    else:
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


class Mirror:
    """Files that grow, which a folder on GCS gets as whole objects.

    They are written in `here`, a temporary folder; `store` uploads those that have changed. A kill
    at any moment leaves in `folder` what was stored last. `here` is the folder itself if it is on
    this machine; `store` then has nothing to do.
    """

    def __init__(self, folder: AnyPath):
        self._folder = folder
        self._scratch = tempfile.TemporaryDirectory() if is_object(folder) else None
        self.here: Path = Path(self._scratch.name) if self._scratch else as_path(str(folder))
        self._sizes: dict[str, int] = {}
        self._stored = time.monotonic()

    def fetch(self, name: str) -> None:
        """Copies what is stored under a name, if anything, to `here`."""
        if self._scratch and (stored := self._folder / name).exists():
            (self.here / name).write_bytes(read(stored))

    def due(self) -> bool:
        """Tells whether the last upload was long ago."""
        return self._scratch is not None and time.monotonic() - self._stored > STORE_EVERY

    def store(self) -> None:
        """Uploads the files that have changed."""
        if self._scratch is None:
            return
        # metrics.jsonl after TensorBoard's events: what is drawn may be ahead of what is counted.
        for file in sorted(self.here.iterdir()):
            content = file.read_bytes()
            if self._sizes.get(file.name) != len(content):
                write(self._folder / file.name, content)
                self._sizes[file.name] = len(content)
        self._stored = time.monotonic()

    def close(self) -> None:
        """Uploads what has changed, and removes the temporary folder."""
        self.store()
        if self._scratch is not None:
            self._scratch.cleanup()
