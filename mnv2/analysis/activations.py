"""Measures the effect of ReLU6 on tensors: positive and dead channels, effective rank."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2.models.batch_norm import BatchNorm
from mnv2.ops import relu6


class Activity(NamedTuple):
    """Statistics of the input of ReLU6 over all images and pixels."""

    channels: int
    positive: float  # number of positive channels, mean over pixels
    deviation: float  # the same, standard deviation over pixels
    fewest: int  # the same, minimum over pixels
    most: int  # the same, maximum over pixels
    cut: float  # share of values that are not positive: ReLU6 maps them to 0
    saturated: float  # share of values that are 6 or more: ReLU6 maps them to 6
    dead: float  # share of channels that are not positive at any pixel


def before_activation(
    model: nn.Module, variables: Any, images: Float[Array, "n h w c"], train: bool = False
) -> dict[str, Float[Array, "n h2 w2 c2"]]:
    """Returns the output of every batch norm by the path of its layer, such as block_3/expand.

    The layer then applies its activation function, if it has one, to these values. With `train`,
    batch norm uses the statistics of `images`. A new network has no other statistics.
    """
    found: dict[str, Array] = {}

    def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return following(*args, **kwargs)
        # Batch norm applies ReLU6 itself where it can.
        y = following(*args, **{**kwargs, "then_relu6": False})
        found["/".join(context.module.path[:-1])] = y
        return relu6(y) if kwargs.get("then_relu6") else y

    with nn.intercept_methods(note):
        model.apply(
            variables,
            images,
            train=train,
            mutable=["intermediates", "batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
    return found


def activity(values: Float[Array, "n h w c"]) -> Activity:
    """Computes the statistics of `values`, the input of ReLU6."""
    channels = values.shape[-1]
    flat = np.asarray(values).reshape(-1, channels)
    positive = flat > 0
    count = positive.sum(axis=1)
    return Activity(
        channels,
        float(count.mean()),
        float(count.std()),
        int(count.min()),
        int(count.max()),
        float(1 - positive.mean()),
        float((flat >= 6).mean()),
        float(1 - positive.any(axis=0).mean()),
    )


def effective_rank(values: Float[Array, "n h w c"]) -> float:
    """Computes the number of directions, 1 to c, over which the channels of a tensor spread.

    This is the exponential of an entropy (Roy & Vetterli 2007, EUSIPCO). The entropy is that of the
    eigenvalues of the channels' covariance, each divided by the trace. The result is 0 for a
    constant tensor.
    """
    flat = jnp.asarray(values, jnp.float32).reshape(-1, values.shape[-1])
    centred = np.asarray(flat - flat.mean(axis=0), np.float64)
    eigenvalues = np.clip(np.linalg.eigvalsh(centred.T @ centred), 0, None)
    if not eigenvalues.sum():
        return 0.0
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
