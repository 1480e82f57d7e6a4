"""The end of every network: global mean, dropout, dense layer."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.ops.precision import accumulator

CLASSIFIER_INIT = nn.initializers.normal(0.01)


def classify(
    network: Any, x: Float[Array, "n h w c"], train: bool
) -> Float[Array, "n classes"] | Float[Array, "n c"]:
    """Returns the logits of `network`, whose `__call__` calls this; the means if it has no classes.

    It uses the fields num_classes, dropout and conventions of the network.
    """
    x = jnp.mean(x, axis=(1, 2), dtype=accumulator(network.conventions.dtype))
    network.sow("intermediates", "pooled", x)
    if not network.num_classes:
        return x
    x = nn.Dropout(network.dropout, deterministic=not train)(x)
    return nn.Dense(network.num_classes, kernel_init=CLASSIFIER_INIT, name="classifier")(x)
