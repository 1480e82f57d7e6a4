"""Saving a run and going on from where it was saved.

A state has hundreds of small arrays, each of which would cost Orbax 2 ms of the processor that
trains: a second for MobileNetV2. They are saved as one vector of each type, 50 ms, beside an index
of their names, types and shapes, and a checksum.
"""

import contextlib
import math
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

from mnv2.runtime.errors import UserError
from mnv2.training.devices import writes
from mnv2.training.state import TrainState

MARGIN = 1 << 20  # bytes that a checkpoint takes beside its arrays


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest two are kept.

    Beside the state each holds `seconds`, the time spent training until then.
    """

    def __init__(self, folder: Path):
        self._folder = folder.absolute()
        self._damaged = self._folder.with_name("damaged")
        self._manager = ocp.CheckpointManager(
            self._folder, options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

    def save(self, step: int, state: TrainState, seconds: float) -> None:
        """Copies the state, which the next step overwrites, and writes in the background.

        Raises UserError where it cannot be written, or the one before could not.
        """
        if step == self._manager.latest_step():
            return
        vectors, index = _pack(state)
        self._check_room(step, sum(vector.nbytes for vector in vectors.values()))
        self._writing(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(vectors),
                    index=ocp.args.JsonSave({"seconds": seconds, **index}),
                ),
            )
        )

    def _check_room(self, step: int, needed: int) -> None:
        """Raises UserError where a checkpoint of so many bytes has no place.

        Looked at before, since a write that fails in the background leaves many messages.
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
                self.wait()  # the one before may be on its way
            raise UserError(
                f"cannot save step {step} in {self._folder}: {trouble}; {self.newest()}"
            )

    def _writing(self, action: Callable[[], Any]) -> None:
        """Raises UserError where Orbax fails to write, now or with what it began before."""
        try:
            action()
        except Exception as error:  # of many kinds, from a thread of Orbax's
            reason = str(error).strip().splitlines()[0][:200]
            raise UserError(f"cannot write to {self._folder}: {reason}; {self.newest()}") from error

    def restore(self, template: TrainState) -> tuple[TrainState, float]:
        """The newest state that can be read, and its seconds; `template` and 0 if none was saved.

        Newer ones that are damaged are moved to `damaged` beside the folder, with a warning.
        Raises UserError if all are.
        """
        damaged: list[tuple[int, str]] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                saved = self._restore(step, template)
            except Exception as error:  # a damaged file makes Orbax fail in any of many ways
                damaged.append((step, f"{type(error).__name__}: {error}".splitlines()[0]))
                continue
            for bad, reason in damaged if writes() else ():
                self._set_aside(bad)
                print(
                    f"warning: the checkpoint of step {bad} is damaged and was moved to "
                    f"{self._damaged}; going on from step {step} ({reason})",
                    file=sys.stderr,
                )
            return saved
        if damaged:
            raise UserError(
                f"no checkpoint in {self._folder} can be read ({damaged[0][1]}): "
                "move that folder away to begin anew"
            )
        return template, 0.0

    def newest(self) -> str:
        """In words: which checkpoint is the newest."""
        # Orbax counts what it is still writing; a folder with that name is finished.
        step = max((int(p.name) for p in self._folder.glob("*") if p.name.isdigit()), default=None)
        if step is None:
            return "there is no checkpoint"
        return f"the newest checkpoint is that of step {step}, in {self._folder}"

    def _restore(self, step: int, template: TrainState) -> tuple[TrainState, float]:
        arrays, seconds = _read(self._manager, step)
        leaves, structure = jax.tree_util.tree_flatten_with_path(template)
        restored = []
        for path, leaf in leaves:
            array = arrays[_name(path)]
            if array.shape != leaf.shape or array.dtype != leaf.dtype:
                raise ValueError(f"{_name(path)} is {array.shape} there and {leaf.shape} here")
            restored.append(jax.device_put(array, leaf.sharding))
        return jax.tree.unflatten(structure, restored), seconds

    def _set_aside(self, step: int) -> None:
        self._damaged.mkdir(exist_ok=True)
        place = self._damaged / f"{step}-{time.time_ns()}"  # it may be damaged again
        (self._folder / str(step)).rename(place)
        self._manager.reload()

    def wait(self) -> None:
        """Waits until what was saved is on disk."""
        self._writing(self._manager.wait_until_finished)

    def close(self) -> None:
        """Waits, and lets go."""
        self.wait()
        self._manager.close()


def restore_variables(folder: Path) -> dict[str, Any]:
    """What evaluation uses of the newest checkpoint in `folder`, whatever devices it is from.

    Raises UserError if there is none.
    """
    state = restore_state(folder)
    return {"params": state.get("ema") or state["params"], "batch_stats": state["batch_stats"]}


def restore_state(folder: Path) -> dict[str, Any]:
    """The newest state in `folder` by the names of its fields.

    Raises UserError if there is none.
    """
    with ocp.CheckpointManager(folder.absolute()) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder} holds no checkpoint yet")
        arrays, _ = _read(manager, step)
    return unflatten_dict(arrays, sep="/")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _pack(state: TrainState) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """A vector of all arrays of each type, copied, and what it takes to find them in it."""
    parts: dict[str, list[np.ndarray]] = {}
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(state)):
        parts.setdefault(leaf.dtype.name, []).append(leaf.ravel())
        names.append((_name(path), leaf.dtype.name, leaf.shape))
    vectors = {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}
    checksums = {dtype: zlib.crc32(vector.data) for dtype, vector in vectors.items()}
    return vectors, {"arrays": names, "crc32": checksums}


def _read(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, np.ndarray], float]:
    """(arrays by name, seconds). Raises ValueError where they are not what was saved."""
    saved = manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(), index=ocp.args.JsonRestore()),
    )
    index, arrays = saved["index"], {}
    vectors = {dtype: np.asarray(vector) for dtype, vector in saved["state"].items()}
    for dtype, checksum in index["crc32"].items():
        if zlib.crc32(vectors[dtype].data) != checksum:
            raise ValueError(f"the checksum of its {dtype} numbers is wrong")
    begins = dict.fromkeys(vectors, 0)
    for name, dtype, shape in index["arrays"]:
        end = begins[dtype] + math.prod(shape)
        arrays[name] = vectors[dtype][begins[dtype] : end].reshape(shape)
        begins[dtype] = end
    return arrays, index["seconds"]
