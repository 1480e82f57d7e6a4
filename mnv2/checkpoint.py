"""Saving a run and going on from where it was saved."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from mnv2.errors import UserError
from mnv2.state import TrainState


class Checkpoints:
    """The checkpoints of one run, in `folder`; the newest two are kept.

    Beside the state each holds `seconds`, the time spent training until then.
    """

    def __init__(self, folder: Path):
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
        )

    def save(self, step: int, state: TrainState, seconds: float) -> None:
        """Copies the state, which the next step overwrites, and writes in the background."""
        if step != self._manager.latest_step():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(jnp.copy, state)),
                    clock=ocp.args.JsonSave({"seconds": seconds}),
                ),
            )

    def restore(self, template: TrainState) -> tuple[TrainState, float]:
        """The newest state and its seconds; `template` itself and 0 where none was saved."""
        step = self._manager.latest_step()
        if step is None:
            return template, 0.0
        shapes: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        saved = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), clock=ocp.args.JsonRestore()
            ),
        )
        return saved["state"], saved["clock"]["seconds"]

    def close(self) -> None:
        """Waits until what was saved is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def restore_variables(folder: Path) -> dict[str, Any]:
    """What evaluation uses of the newest checkpoint in `folder`, whatever devices it is from.

    Raises UserError if there is none.
    """
    with ocp.CheckpointManager(folder.absolute()) as manager:
        step = manager.latest_step()
    if step is None:
        raise UserError(f"{folder} holds no checkpoint yet")
    path = folder.absolute() / str(step) / "state"
    with ocp.StandardCheckpointer() as checkpointer:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        state = checkpointer.restore(path, shapes)
    return {"params": state.get("ema") or state["params"], "batch_stats": state["batch_stats"]}
