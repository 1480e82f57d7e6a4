"""Networks with random weights and statistics, ready to be timed, and their layers or blocks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnv2.models import create_model


def unoptimised(init: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles `init` without optimisation: it runs once, and compiles in a quarter of the time."""
    return jax.jit(init, compiler_options={"xla_backend_optimization_level": 0})


def random_statistics(variables: Any) -> Any:
    """Replaces the batch norm statistics of `variables`: means in [-0.5, 0.5], variances around 1.

    The zeros and ones of a fresh network would let XLA skip work that a trained network needs.
    """
    random = np.random.default_rng(0)

    def drawn(path: Any, like: Any) -> np.ndarray:
        centre = 1.0 if path[-1].key == "var" else 0.0  # positive means would turn all layers off
        return (centre + random.uniform(-0.5, 0.5, like.shape)).astype(np.float32)

    statistics = jax.tree_util.tree_map_with_path(drawn, variables["batch_stats"])
    return {**variables, "batch_stats": statistics}


def random_network(name: str, **fields: Any) -> tuple[nn.Module, Any]:
    """Returns a network of `mnv2.models`, and its variables with random weights and statistics."""
    model: Any = create_model(name, **fields)
    variables = unoptimised(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, random_statistics(variables)


def normal(shape: tuple[int, ...], scale: float = 1.0) -> jax.Array:
    """Returns an input of normally distributed numbers, always the same."""
    return jnp.asarray(np.random.default_rng(0).normal(scale=scale, size=shape), jnp.float32)


class Submodule(NamedTuple):
    """A module of a network, which `module.apply({"params": params}, x)` calls alone."""

    module: Any
    params: Any
    input_shape: tuple[int, ...]  # in the network


def submodules(
    model: Any, variables: Any, image: tuple[int, ...], kinds: type | tuple[type, ...]
) -> dict[str, Submodule]:
    """Finds the modules of these kinds in a network, for an input of shape "n h w c".

    Returns each module as it is called in evaluation, by its path: "block_3/expand".
    """
    found: dict[str, Submodule] = {}

    def note(following: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, kinds):
            params = variables["params"]
            for name in module.path:
                params = params[name]
            alone = module.clone(parent=None, name=None)
            found["/".join(module.path)] = Submodule(alone, params, args[0].shape)
        return following(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: model.apply(variables, x, train=False), jnp.zeros(image))
    return found
