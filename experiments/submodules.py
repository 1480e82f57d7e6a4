"""A network's layers and blocks one by one."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp


class Submodule(NamedTuple):
    """A module as the network calls it: it can be called by itself as `module.apply`."""

    module: Any
    params: Any
    input_shape: tuple[int, ...]


def submodules(
    model: Any, variables: Any, image: tuple[int, ...], kinds: type | tuple[type, ...]
) -> dict[str, Submodule]:
    """The modules of these kinds by path, for images of shape `image`, in evaluation."""
    found: dict[str, Submodule] = {}

    def note(following: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name == "__call__" and isinstance(module, kinds):
            found["/".join(module.path)] = Submodule(
                module.clone(parent=None, name=None),
                at(variables["params"], module.path),
                args[0].shape,
            )
        return following(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda x: model.apply(variables, x, train=False), jnp.zeros(image))
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The branch of a tree under `path`."""
    for name in path:
        tree = tree[name]
    return tree
