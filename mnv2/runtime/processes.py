"""Several processes of one run: how they meet, divide the work, agree, and end together."""

import contextlib
import faulthandler
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from mnv2.runtime.cli import leave
from mnv2.runtime.errors import UserError, first_line

MEETING = 120  # seconds that the first process waits for the others
SILENCE = 60  # seconds without a heartbeat after which a process counts as dead
GRACE = 3  # seconds in which the others can say what is wrong: they end when the first one does
LOST = 1  # the exit code of a process that lost another one


def meet(
    coordinator: str | None = None, count: int | None = None, which: int | None = None
) -> None:
    """Joins the processes of this run. Must be called before anything else uses JAX.

    JAX finds the values that are None by itself, from SLURM, MPI, Kubernetes or a TPU pod. Raises
    UserError if it finds none, and if the other processes do not come.
    """
    # JAX may end this process with one line that says why; absl would add a hundred lines.
    faulthandler.disable()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            which,
            initialization_timeout=MEETING,
            heartbeat_timeout_seconds=SILENCE,
        )
    except (ValueError, RuntimeError) as error:
        found = "" if coordinator else "; JAX found no cluster here: "
        hint = "" if coordinator else "give --coordinator_address, --num_processes, --process_id"
        raise UserError(f"the processes cannot meet: {first_line(error)}{found}{hint}") from error
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of the "
            f"{jax.device_count()} devices of {jax.process_count()} processes: give each as many"
        )


def process_shard() -> tuple[int, int]:
    """Returns which part of each batch this process reads: (index, number of processes)."""
    return jax.process_index(), jax.process_count()


def is_writer() -> bool:
    """Tells whether this is the one process that writes the files that a run has once."""
    return jax.process_index() == 0


def say(line: str) -> None:
    """Prints a line immediately, in one of the processes."""
    if is_writer():
        print(line, flush=True)


def any_of(value: bool) -> bool:
    """Tells whether `value` is true in any process. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def broadcast_from_primary[Value: (bool, int)](value: Value) -> Value:
    """Returns the `value` of process 0. All processes must call it."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """Ends this process immediately if it fails or loses another one; the others notice.

    A normal exit would wait until all processes are ready to exit.
    """
    try:
        yield
    except Exception as error:
        # Not by the number of processes: JAX may have failed to find its devices.
        if not jax.distributed.is_initialized():
            raise
        code, message = 2, str(error)
        if not isinstance(error, UserError):
            code = LOST
            message = (
                f"process {jax.process_index()} of {jax.process_count()} ended, or lost one of the "
                f"others: {type(error).__name__}: {first_line(error)}; start all again to resume "
                "from the newest checkpoint"
            )
        print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
        if isinstance(error, UserError):  # which the others find, too
            time.sleep(GRACE)
        leave(code)
