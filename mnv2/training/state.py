"""Everything that training changes."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from mnv2.ops import PLAIN, traced_for
from mnv2.ops.precision import accumulator


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
    return _initializer(model, optimizer, image_shape, ema)(jax.random.key(seed))


def forget() -> None:
    """Drops the programs that draw initial values, which later runs would share."""
    _initializer.cache_clear()


@functools.cache  # runs that differ only in their seed share the compiled program
def _initializer(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    ema: bool,
) -> Callable[[jax.Array], TrainState]:
    # Without optimisation the program that draws the parameters compiles in 2 s instead of 10.
    @jax.jit(compiler_options={"xla_backend_optimization_level": 0})
    def initial(key: jax.Array) -> TrainState:
        dtype = accumulator(model.dtype)
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
