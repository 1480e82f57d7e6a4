"""Saves the state of a run, and restores it so that the run can be resumed."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from mnv2.runtime import packed_arrays
from mnv2.runtime.errors import UserError
from mnv2.runtime.layout import DAMAGED
from mnv2.runtime.processes import is_writer
from mnv2.training.state import TrainState

MARGIN = 1 << 20  # bytes that a checkpoint needs besides its arrays


class Checkpoints:
    """The checkpoints of one run in `folder`. The newest two are kept.

    Each holds the state and `seconds`, the time spent training until then.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._damaged = self._folder.with_name(DAMAGED)
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

    def save(self, step: int, state: TrainState, seconds: float) -> None:
        """Copies the state, which the next step overwrites, and writes it in the background.

        Raises UserError if the state cannot be written, or if the previous one could not.
        """
        if step == self._manager.latest_step():
            return
        vectors, index = packed_arrays.pack(state)
        self._check_space(step, sum(vector.nbytes for vector in vectors.values()))
        self._write(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(vectors),
                    index=ocp.args.JsonSave({"seconds": seconds, **index}),
                ),
            )
        )

    def _check_space(self, step: int, needed: int) -> None:
        """Raises UserError if a checkpoint of `needed` bytes cannot be written.

        Checked in advance, because a failed write in the background leaves many messages.
        """
        trouble = None
        if not self._folder.is_dir():
            trouble = "the folder is gone"
        elif not os.access(self._folder, os.W_OK):
            trouble = "writing there is not permitted"
        elif (free := shutil.disk_usage(self._folder).free) < needed + MARGIN:
            trouble = f"{free / 1e6:,.1f} MB are free, {(needed + MARGIN) / 1e6:,.1f} are needed"
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
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"cannot write to {self._folder}: {reason}; {self.newest()}") from error

    def restore(self, template: TrainState) -> tuple[TrainState, float]:
        """Returns the newest readable state and its seconds; (template, 0) if none was saved.

        Damaged newer checkpoints are moved to the folder `damaged`, with a warning. Raises
        UserError if all checkpoints are damaged.
        """
        damaged: list[tuple[int, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._restore(step, template)
            except Exception as error:  # a damaged file makes Orbax fail in any of many ways
                damaged.append((step, f"{type(error).__name__}: {error}".splitlines()[0]))
                continue
            for bad, reason in damaged if is_writer() else ():
                self._set_aside(bad)
                print(
                    f"warning: the checkpoint of step {bad} is damaged and was moved to "
                    f"{self._damaged}; the run resumes from step {step} ({reason})",
                    file=sys.stderr,
                )
            return saved
        if damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({damaged[0][1]}): "
                "move that folder away to start from the beginning"
            )
        return template, 0.0

    def newest(self) -> str:
        """Says which checkpoint is the newest."""
        # Orbax also counts what it is still writing; a folder named by a step is complete.
        step = max((int(p.name) for p in self._folder.glob("*") if p.name.isdigit()), default=None)
        if step is None:
            return "there is no checkpoint"
        return f"the newest checkpoint is that of step {step}, in {self._folder}"

    def _restore(self, step: int, template: TrainState) -> tuple[TrainState, float]:
        arrays, index = packed_arrays.read(self._manager, step)
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        restored = []
        for path, leaf in leaves:
            name = packed_arrays.name_of(path)
            array = arrays[name]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{name} is {array.shape} there and {leaf.shape} here")
            restored.append(jax.device_put(array, leaf.sharding))
        return jax.tree.unflatten(structure, restored), index["seconds"]

    def _set_aside(self, step: int) -> None:
        self._damaged.mkdir(exist_ok=True)
        place = self._damaged / f"{step}-{time.time_ns()}"  # the same step may be damaged again
        (self._folder / str(step)).rename(place)
        self._manager.reload()

    def wait(self) -> None:
        """Waits until everything that was saved is on disk."""
        self._write(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and releases Orbax's resources."""
        self.wait()
        self._manager.close()
