"""The end of every network: dropout and a dense layer on the pooled features."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

CLASSIFIER_INIT = nn.initializers.normal(0.01)


def classify(network: Any, x: Float[Array, "n c"], train: bool) -> Float[Array, "n classes"]:
    """Returns the logits of `network`, whose `__call__` calls this; `x` if it has no classes.

    It uses the fields num_classes and dropout of the network.
    """
    if not network.num_classes:
        return x
    x = nn.Dropout(network.dropout, deterministic=not train)(x)
    return nn.Dense(network.num_classes, kernel_init=CLASSIFIER_INIT, name="classifier")(x)
