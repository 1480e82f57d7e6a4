"""Random variables for networks, drawn from their shapes: nothing is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mnv2.models.shapes import variable_shapes


def random_variables(model, channels=3, seed=0) -> Any:
    """Returns variables with the scale of trained ones, for images with `channels` channels.

    The statistics of batch norm, and its scales and biases, differ from those of a new network.
    """
    random = np.random.default_rng(seed)

    def tensor(path, like):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(like.shape[:-1])
            value = random.normal(0, np.sqrt(2 / fan_in), like.shape)
        elif name in ("scale", "var"):
            value = random.uniform(0.8, 1.2, like.shape)
        else:
            value = random.normal(0, 0.1, like.shape)
        return jnp.asarray(value, like.dtype)

    return jax.tree_util.tree_map_with_path(tensor, variable_shapes(model, channels))
