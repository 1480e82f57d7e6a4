"""Everything that training changes."""

import functools
from collections.abc import Callable
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mnv2.ops.precision import accumulator


@flax.struct.dataclass
class TrainState:
    """Parameters, their moving average (None if there is none), statistics, optimiser, step."""

    step: Any  # scalar int32
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any

    def variables(self) -> dict[str, Any]:
        """What evaluation uses: averaged parameters where they are kept, and running statistics."""
        params = self.params if self.ema is None else self.ema
        return {"params": params, "batch_stats": self.batch_stats}


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    *,
    seed: int,
    ema: bool,
) -> TrainState:
    """A fresh state; the parameters are a function of `seed`, and float64 where the network is."""
    return _initializer(model, optimizer, image_shape, ema)(jax.random.key(seed))


@functools.cache  # runs that differ in their seed alone share what is compiled
def _initializer(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
    ema: bool,
) -> Callable[[jax.Array], TrainState]:
    # Unoptimised, the program that draws the parameters compiles in 2 s instead of 10.
    @jax.jit(compiler_options={"xla_backend_optimization_level": 0})
    def initial(key: jax.Array) -> TrainState:
        dtype = accumulator(model.dtype)
        variables = model.init(key, jnp.zeros((1, *image_shape)))
        variables = jax.tree.map(lambda x: x.astype(dtype), variables)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            batch_stats=variables["batch_stats"],
            opt_state=optimizer.init(params),
            ema=jax.tree.map(jnp.copy, params) if ema else None,
        )

    return initial
