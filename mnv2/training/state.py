"""Everything that training changes, and what a run starts from: fresh, or a file of weights."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from mnv2.ops import PLAIN, traced_for
from mnv2.ops.precision import accumulator
from mnv2.pretrained import Pretrained


@flax.struct.dataclass
class TrainState:
    """The state of one run.

    step         steps done so far
    params       the network's parameters
    batch_stats  batch norm's running statistics
    opt_state    the optimiser's state
    ema          moving averages of `params` and `batch_stats`; None if none are kept
    skipped      steps that were skipped because they were not finite: scalar int32
    skipped_in_a_row  the same, since the last step that was not skipped
    """

    step: Any  # scalar int32; trees of shapes and NumPy arrays have this type, too
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    ema: PyTree | None
    skipped: Any
    skipped_in_a_row: Any

    def variables(self) -> dict[str, Any]:
        """Returns what evaluation uses: parameters and running statistics, averaged if possible."""
        return self.ema or self.raw()

    def raw(self) -> dict[str, Any]:
        """Returns the parameters and running statistics themselves, without averages."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def without_averages(self) -> "TrainState":
        """Returns a state of the same structure, of which evaluation uses the parameters."""
        return self.replace(ema=self.raw())  # type: ignore[attr-defined]


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    ema: bool,
) -> TrainState:
    """Creates a fresh state. The parameters are a function of `seed` alone.

    They are float32, and float64 if the network computes in float64.
    """
    return initializer(model, optimizer, image_shape, ema)(jax.random.key(seed))


@functools.cache  # runs that differ only in their seed share the compiled program
def initializer(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    ema: bool,
) -> Callable[[jax.Array], TrainState]:
    # Without optimisation the program that draws the parameters compiles in 2 s instead of 10.
    @jax.jit(compiler_options={"xla_backend_optimization_level": 0})
    def initial(key: jax.Array) -> TrainState:
        dtype = accumulator(model.conventions.dtype)
        with traced_for(PLAIN):
            variables = model.init(key, jnp.zeros((1, *image_shape)))
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        params, batch_stats = variables["params"], variables["batch_stats"]
        averaged = {"params": params, "batch_stats": batch_stats}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, averaged) if ema else None,
            skipped=jnp.zeros((), jnp.int32),
            skipped_in_a_row=jnp.zeros((), jnp.int32),
        )

    return initial


def with_weights(state: TrainState, loaded: Pretrained) -> TrainState:
    """Replaces the parameters and statistics of a fresh state by those that `loaded` has.

    The classifier stays new if `loaded` has none.
    """

    def replaced(fresh: Any, given: Any) -> Any:
        # Copied, because a step overwrites the arrays of its state.
        copied = {path: jnp.copy(array) for path, array in flatten_dict(given).items()}
        return unflatten_dict({**flatten_dict(fresh), **copied})

    variables = {
        "params": replaced(state.params, loaded.variables["params"]),
        "batch_stats": replaced(state.batch_stats, loaded.variables["batch_stats"]),
    }
    ema = None if state.ema is None else jax.tree.map(jnp.copy, variables)
    return state.replace(**variables, ema=ema)  # type: ignore[attr-defined]
