"""The shapes of a network's variables, which tell everything about them but their values."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mnv2.ops import PLAIN, traced_for


@functools.lru_cache(maxsize=256)  # tracing a network takes half a second
def variable_shapes(model: nn.Module, channels: int) -> dict[str, Any]:
    """Returns the variables of a network for images with `channels` channels, as shapes and types.

    They do not depend on the height and width of the images. Nothing is computed.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, channels), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)  # a key itself would start JAX on its devices
    with traced_for(PLAIN):
        return jax.eval_shape(model.init, key, image)
