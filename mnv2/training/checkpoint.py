"""Saves the state of a run, and restores it so that the run can be resumed."""

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnv2.runtime import packed_arrays
from mnv2.runtime.errors import NotFinite, UserError, causes, first_line, is_store_error
from mnv2.runtime.files import AnyPath, absolute, in_bucket, write_text
from mnv2.runtime.layout import DAMAGED
from mnv2.runtime.machine import WORKERS
from mnv2.runtime.processes import broadcast_from_primary, is_writer
from mnv2.training.state import TrainState

MARGIN = 1 << 20  # bytes that a checkpoint needs besides its arrays
# Errors of a file system that is out of reach for a moment; they say nothing about the files.
PASSING = (
    *(errno.EIO, errno.ETIMEDOUT, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EACCES),
    *(errno.EPERM, errno.ENOTCONN, errno.EHOSTDOWN, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
)


class Timing(NamedTuple):
    """The time spent on training so far, and the number of steps that took it.

    The first step of each process, which may compile, is in neither.
    """

    seconds: float = 0.0
    steps: int = 0


class Checkpoints:
    """The checkpoints of one run in `folder`. The newest two are kept.

    Each holds the state and the timing of the training until then.
    """

    def __init__(self, folder: AnyPath):
        self._folder = absolute(folder)
        self._damaged = self._folder.with_name(DAMAGED)
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

    def save(self, step: int, state: TrainState, timing: Timing) -> None:
        """Copies the state, which the next step overwrites, and writes it in the background.

        Raises UserError if the state cannot be written, or if the previous one could not, and
        NotFinite if the state holds a value that is not finite: no run could resume from it.
        """
        if step == self._manager.latest_step():
            return
        vectors, index = packed_arrays.pack(state)
        if not all(np.isfinite(vector).all() for vector in vectors.values()):
            raise NotFinite(
                f"the state after step {step} is not finite and is not saved; {self.newest()}"
            )
        self._check_space(step, sum(vector.nbytes for vector in vectors.values()))
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(vectors),
            index=ocp.args.JsonSave({"timing": timing, **index}),
        )
        self._write(lambda: self._manager.save(step, args=arguments))

    def _check_space(self, step: int, needed: int) -> None:
        """Raises UserError if a checkpoint of `needed` bytes cannot be written.

        Checked in advance, because a failed write in the background leaves many messages. There
        must be room for as many as may be written at the same time.
        """
        needed = needed * int(os.environ.get(WORKERS, "1")) + MARGIN
        if in_bucket(self._folder):
            return  # no disk that could be full, and no folder
        trouble = None
        if not self._folder.is_dir():
            trouble = "the folder is gone"
        elif not os.access(self._folder, os.W_OK):
            trouble = "writing there is not permitted"
        elif (free := shutil.disk_usage(self._folder).free) < needed:
            trouble = f"{free / 1e6:,.1f} MB are free, {needed / 1e6:,.1f} are needed"
        if trouble:
            with contextlib.suppress(UserError):
                self.wait()  # the previous checkpoint may still be on its way
            raise UserError(
                f"cannot save step {step} in {self._folder}: {trouble}; {self.newest()}"
            )

    def _write(self, action: Callable[[], Any]) -> None:
        """Raises UserError if Orbax fails to write, now or what it began before."""
        try:
            action()
        except Exception as error:  # of many types, raised in a thread of Orbax
            raise UserError(
                f"cannot write to {self._folder}: {first_line(error)[:200]}; {self.newest()}"
            ) from error

    def restore(self, template: TrainState) -> tuple[TrainState, Timing]:
        """Returns the newest readable state and its timing; the template if none was saved.

        Damaged newer checkpoints are moved to the folder `damaged`, with a warning. With several
        processes, one of them decides which checkpoint is readable, and all read that one. Raises
        UserError if all checkpoints are damaged, or if the file system fails.
        """
        damaged: list[tuple[int, str]] = []
        steps = sorted(self._manager.all_steps(), reverse=True) if is_writer() else []
        found, trouble = None, None
        for step in steps:
            try:
                found = step, self._restore(step, template)
                break
            except UserError as error:
                trouble = str(error)
                break
            except Exception as error:  # a damaged file makes Orbax fail in any of many ways
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                if passing(error):
                    trouble = f"cannot read the checkpoint of step {step} now ({reason}): try again"
                    break
                damaged.append((step, reason))
        if is_writer() and not found and damaged and not trouble:
            trouble = (
                f"no checkpoint in {self._folder} can be read ({damaged[0][1]}): "
                "move that folder away to start from the beginning"
            )
        agreed = broadcast_from_primary(-1 if trouble else found[0] if found else 0)
        if agreed < 0:
            raise UserError(trouble or "the first process cannot read a checkpoint")
        if not agreed:
            return template, Timing()
        for bad, reason in damaged:
            self._set_aside(bad, reason)
            print(
                f"warning: the checkpoint of step {bad} is damaged and was moved to "
                f"{self._damaged}; the run resumes from step {agreed} ({reason})",
                file=sys.stderr,
            )
        if broadcast_from_primary(len(damaged)):  # they are moved now: every process must see it
            self._manager.reload()
        return found[1] if found else self._restore(agreed, template)

    def newest(self) -> str:
        """Says which checkpoint is the newest."""
        # The manager would also count what it is still writing.
        step = max(ocp.utils.checkpoint_steps(self._folder), default=None)
        if step is None:
            return "there is no checkpoint"
        return f"the newest checkpoint is that of step {step}, in {self._folder}"

    def _restore(self, step: int, template: TrainState) -> tuple[TrainState, Timing]:
        with packed_arrays.reader(self._folder) as manager:
            arrays, index = packed_arrays.read(manager, step)
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        restored = []
        for path, leaf in leaves:
            name = packed_arrays.name_of(path)
            array = arrays.get(name)
            if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
                found = "nothing" if array is None else f"{array.dtype} {array.shape}"
                raise UserError(
                    f"the checkpoint of step {step} in {self._folder} has {found} for {name}, not "
                    f"{leaf.dtype} {leaf.shape}: another config or version of mnv2 wrote it; move "
                    "that folder away to start from the beginning"
                )
            restored.append(jax.device_put(array, leaf.sharding))
        return jax.tree.unflatten(structure, restored), Timing(*index["timing"])

    def _set_aside(self, step: int, reason: str) -> None:
        """Moves a checkpoint to the folder `damaged`, beside a file that says what is wrong."""
        name = f"{step}-{time.time_ns()}"  # the same step may be damaged again
        write_text(self._damaged / f"reason-{name}.txt", f"{reason}\n")
        (self._folder / str(step)).rename(self._damaged / name)

    def wait(self) -> None:
        """Waits until everything that was saved is on disk."""
        self._write(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and releases Orbax's resources."""
        self.wait()
        self._manager.close()


def passing(error: BaseException) -> bool:
    """Tells whether an error, or its cause, is a failure of the file system and no damage."""
    return is_store_error(error) or any(
        isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno in PASSING)
        for cause in causes(error)
    )
