"""What activations keep of a tensor: positive channels, dead and saturated ones, effective rank."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mnv2.models.batch_norm import BatchNorm


class Activity(NamedTuple):
    """What ReLU6 finds in a layer's values, over images and places of the images."""

    channels: int
    positive: float  # mean number of positive channels at a place
    deviation: float  # its standard deviation over places
    fewest: int  # the least, over places
    most: int
    cut: float  # share of values that are not positive: ReLU6 makes them 0
    saturated: float  # share of values of 6 and more: ReLU6 makes them 6
    dead: float  # share of channels that are positive nowhere


def before_activation(
    model: nn.Module, variables: Any, images: Float[Array, "n h w c"], train: bool = False
) -> dict[str, Float[Array, "n h2 w2 c2"]]:
    """What every batch norm gives by its layer's path: block_3/expand.

    These are the values to which the layer's activation, if it has one, is then applied. With
    `train`, batch norm takes the statistics of `images`: a fresh network has no others.
    """
    _, state = model.apply(
        variables,
        images,
        train=train,
        mutable=["intermediates", "batch_stats"],
        rngs={"dropout": jax.random.key(0)},
        capture_intermediates=lambda module, method: (
            isinstance(module, BatchNorm) and method == "__call__"
        ),
    )
    found = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state["intermediates"]):
        names = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
        if names[-1] == "__call__":  # not what networks sow by themselves
            found["/".join(names[:-2])] = value
    return found


def activity(values: Float[Array, "n h w c"]) -> Activity:
    """What ReLU6 would find in `values`."""
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
    """How many directions a tensor's channels spread over, 1 to c.

    The exponential of the entropy of the shares that the eigenvalues of their covariance have of
    its trace (Roy & Vetterli 2007, EUSIPCO). 0 where nothing varies.
    """
    flat = jnp.asarray(values, jnp.float32).reshape(-1, values.shape[-1])
    centred = np.asarray(flat - flat.mean(axis=0), np.float64)
    eigenvalues = np.clip(np.linalg.eigvalsh(centred.T @ centred), 0, None)
    if not eigenvalues.sum():
        return 0.0
    shares = eigenvalues / eigenvalues.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))
