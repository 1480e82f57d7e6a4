"""The state that a run starts from: fresh, or with the weights of a file."""

from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mnv2.pretrained import Pretrained
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few
from mnv2.training.optimizer import decays_generally
from mnv2.training.settings import Optimization, Settings
from mnv2.training.setup import Setup
from mnv2.training.state import TrainState, create_state


def initial_state(setup: Setup, settings: Settings) -> TrainState:
    """Creates the state before the first step, on all devices.

    Raises UserError if weights are to decay, and none of them has a name that matches.
    """
    state = create_state(
        setup.model,
        setup.steps.optimizer,
        setup.image_shape,
        seed=settings.seed,
        ema=settings.ema_decay > 0,
    )
    _check_decay(state.params, settings.optimization)
    if setup.weights is not None and settings.starts_from_weights:
        state = with_weights(state, setup.weights)
    return setup.steps.place(state)


def _check_decay(params: Any, config: Optimization) -> None:
    names = list(flatten_dict(params, sep="/"))
    if config.weight_decay and not any(decays_generally(name, config) for name in names):
        raise UserError(
            f"optimization.weight_decay_on {config.weight_decay_on!r} matches no parameter that "
            f"has this weight decay: they are {first_few(names)}; set optimization.weight_decay 0 "
            "to decay none"
        )


def with_weights(state: TrainState, loaded: Pretrained) -> TrainState:
    """Replaces the parameters and statistics of a fresh state by those that `loaded` has.

    The classifier stays new if `loaded` has none.
    """

    def replaced(fresh: Any, given: Any) -> Any:
        # What the file does not have stays, such as the ranges of a network that is quantized now.
        # The rest is copied, because a step overwrites the arrays of its state.
        copied = {path: jnp.copy(array) for path, array in flatten_dict(given).items()}
        return unflatten_dict({**flatten_dict(fresh), **copied})

    theirs = loaded.variables
    variables = {
        "params": replaced(state.params, theirs["params"]),
        "batch_stats": replaced(state.batch_stats, theirs["batch_stats"]),
    }
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
    return state.replace(**variables, ema=ema)  # type: ignore[attr-defined]
