"""Takes a network apart into layers or blocks that can be called alone."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


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
