"""The end of every network: dropout and a dense layer on the pooled features."""

import functools
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mnv2.models.rounding import Rounding, rounded_dot_general

CLASSIFIER_INIT = nn.initializers.normal(0.01)


def classify(network: Any, x: Float[Array, "n c"], train: bool) -> Float[Array, "n classes"]:
    """Returns the logits of `network`, whose `__call__` calls this; `x` if it has no classes.

    It uses the fields num_classes, dropout, quantized, bn_momentum and axis_name of the network.
    """
    if not network.num_classes:
        return x

    def rounded(name: str, tensor: Any) -> Any:
        if network.quantized == "none":
            return tensor
        return Rounding(network.bn_momentum, network.axis_name, name=name)(tensor, train)

    x = rounded("pooled_rounding", x)
    x = nn.Dropout(network.dropout, deterministic=not train)(x)
    per_channel = network.quantized == "channel"
    dot_general = functools.partial(rounded_dot_general, per_channel=per_channel)
    dense = nn.Dense(
        network.num_classes,
        kernel_init=CLASSIFIER_INIT,
        dot_general=None if network.quantized == "none" else dot_general,
        name="classifier",
    )
    return rounded("logits_rounding", dense(x))
