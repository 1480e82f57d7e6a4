"""One writer per folder on Google Cloud Storage, which has no locks: a lease that is renewed.

The object `.lock` says which process writes to a folder. That process replaces it every RENEW
seconds. Another process takes the lease only after it saw the same object for EXPIRY seconds. So
no two clocks are compared. Each request says which generation of the object it replaces, and the
store refuses it if another process was faster: two processes cannot both get the lease.

A process whose lease was taken, or that cannot renew it for PATIENCE seconds, ends at once. What is
not guaranteed: a process that was suspended for longer than EXPIRY may send requests until its next
renewal is refused.

The cost is 360 small writes an hour: 0.2 US cents.
"""

import contextlib
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

from mnv2.runtime import storage
from mnv2.runtime.errors import Held
from mnv2.runtime.layout import LOCK
from mnv2.runtime.storage import AnyPath

RENEW = 10.0  # seconds
ANSWER = 10.0  # seconds that a request may take
EXPIRY = 60.0  # seconds
# Seconds without a renewal after which a process ends itself. Its last attempt may begin RENEW
# later and take ANSWER seconds, and must not end later than the lease.
PATIENCE = 30.0
LOST = 1  # the exit code of a process that lost its lease


class _Seen(NamedTuple):
    """The object of a lease: its generation, and what it says."""

    generation: str
    process: str
    token: str  # differs from process to process
    written: float  # by the clock of that process


@contextlib.contextmanager
def held(folder: AnyPath) -> Iterator[None]:
    """Keeps other processes out of a folder. Raises Held if another process is writing there.

    Waits for EXPIRY if there is a lease, since its process may have been killed.
    """
    path, token = folder / LOCK, uuid.uuid4().hex
    before = _seen(path)
    if before is not None:
        print(
            f"note: {before.process} writes to {folder}, or was killed there: waiting "
            f"{EXPIRY:.0f} s for a sign of life",
            file=sys.stderr,
            flush=True,
        )
        before = _same_until_expiry(path, before)
    try:
        generation = _replace(path, token, before.generation if before else "0")
    except FileExistsError:
        raise Held("another process") from None
    ended = threading.Event()
    arguments = (path, token, generation, ended)
    renewing = threading.Thread(target=_renew, args=arguments, name="lease", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(Exception):  # the lease expires anyway
            if (now := _seen(path)) and now.token == token:
                path.unlink(missing_ok=True)


def holder(folder: AnyPath) -> str | None:
    """Returns which process has renewed its lease lately; None if none has.

    This compares the clocks of two machines, for information only.
    """
    seen = _seen(folder / LOCK)
    return seen.process if seen and time.time() - seen.written < EXPIRY else None


def _same_until_expiry(path: AnyPath, before: _Seen) -> _Seen | None:
    """Returns the lease if nobody renews it; None if it is given back. Raises Held otherwise."""
    deadline = time.monotonic() + EXPIRY
    while time.monotonic() < deadline:
        time.sleep(RENEW / 5)
        now = _seen(path)
        if now is None:
            return None
        if now.generation != before.generation:
            raise Held(now.process)
    return before


def _renew(path: AnyPath, token: str, generation: str, ended: threading.Event) -> None:
    """Renews a lease until `ended`. Ends the process if the lease is lost."""
    renewed = time.monotonic()
    while not ended.wait(RENEW):
        asked = time.monotonic()
        try:
            try:
                generation = _replace(path, token, generation)
            except FileExistsError:
                now = _seen(path)
                if now is None or now.token != token:
                    taker = now.process if now else "another process"
                    _leave(f"{taker} has taken over {path.parent}")
                    return
                generation = now.generation  # it is ours: the answer was lost on its way
            renewed = asked
        except Exception as error:  # of many types: the store is out of reach
            if time.monotonic() - renewed > PATIENCE:
                _leave(f"cannot renew {path}: {storage.reason(error)}")


def _leave(message: str) -> None:
    """Ends the process at once: whatever it wrote now could mix with what another one writes."""
    print(
        f"error: {message}; the same command resumes from the newest checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(LOST)


def _seen(path: AnyPath) -> _Seen | None:
    """Reads a lease; None if there is none."""
    try:
        # In this order: if it is replaced in between, the older generation is refused later.
        generation = storage.filesystem().info(str(path))["generation"]
        says = json.loads(storage.read(path))
        return _Seen(generation, says["process"], says["token"], float(says["written"]))
    except FileNotFoundError:
        return None


def _replace(path: AnyPath, token: str, generation: str) -> str:
    """Writes a lease in place of a generation ("0": of none); returns its own generation.

    Raises FileExistsError if the object has another generation.
    """
    says = {
        "process": f"process {os.getpid()} on {platform.node()}",
        "token": token,
        "written": time.time(),
    }
    files = storage.filesystem()
    bucket, name = storage.split(path)
    written: dict[str, Any] = files.call(
        "POST",
        files.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
        bucket,
        uploadType="media",
        name=name,
        ifGenerationMatch=generation,
        data=json.dumps(says).encode(),
        json_out=True,
        timeout=ANSWER,
    )
    return written["generation"]
