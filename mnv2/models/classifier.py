"""The end of every network: dropout and a dense layer on the pooled features."""

import functools
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mnv2.models.rounding import rounded_by, rounded_dot_general, rounding_of

CLASSIFIER_INIT = nn.initializers.normal(0.01)


def classify(network: Any, x: Float[Array, "n c"], train: bool) -> Float[Array, "n classes"]:
    """Returns the logits of `network`, whose `__call__` calls this; `x` if it has no classes.

    It uses the fields num_classes, dropout, quantized, bn_momentum and axis_name of the network.
    """
    if not network.num_classes:
        return x

    rounding = rounding_of(network)
    x = rounded_by(rounding, "pooled_rounding", x, train)
    x = nn.Dropout(network.dropout, deterministic=not train)(x)
    per_channel = network.quantized == "channel"
    dot_general = functools.partial(rounded_dot_general, per_channel=per_channel)
    dense = nn.Dense(
        network.num_classes,
        kernel_init=CLASSIFIER_INIT,
        dot_general=dot_general if rounding else None,
        name="classifier",
    )
    return rounded_by(rounding, "logits_rounding", dense(x), train)
