"""The state that a run starts from: fresh, or with the weights of a file."""

from typing import Any

import jax
import jax.numpy as jnp

from mnv2.pretrained import Pretrained
from mnv2.training.settings import Settings
from mnv2.training.setup import Setup
from mnv2.training.state import TrainState, create_state


def initial_state(setup: Setup, settings: Settings) -> TrainState:
    """Creates the state before the first step, on all devices."""
    state = create_state(
        setup.model,
        setup.steps.optimizer,
        setup.image_shape,
        seed=settings.seed,
        ema=settings.ema_decay > 0,
    )
    if setup.backbone is not None and settings.starts_from_weights:
        state = with_backbone(state, setup.backbone)
    return setup.steps.place(state)


def with_backbone(state: TrainState, backbone: Pretrained) -> TrainState:
    """Replaces the parameters and statistics of a fresh state; its classifier stays new."""

    def replaced(fresh: Any, given: Any) -> Any:
        # Copies, because a step overwrites the arrays of its state.
        return {**fresh, **jax.tree.map(jnp.copy, given)}

    theirs = backbone.variables
    return state.replace(  # type: ignore[attr-defined]
        params=replaced(state.params, theirs["params"]),
        batch_stats=replaced(state.batch_stats, theirs["batch_stats"]),
        ema=None if state.ema is None else replaced(state.ema, theirs["params"]),
    )
