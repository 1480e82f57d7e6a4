"""What one training step computes, to be held against other frameworks.

A gradient jumps where an activation crosses a kink of ReLU6, and of a million activations a few lie
within rounding of one. SHIFT, added to every shift of batch norm, moves most activations to the
middle of ReLU6, so that kinks are reached but rarely.
"""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mnv2.training import metrics
from tests.pretrained.reference import SHIFT as SHIFT

TOLERANCE = 1e-3


def training_gradients(loaded, images, labels):
    """Of the cross-entropy with batch statistics, without dropout."""
    model = loaded.model.clone(dropout=0.0)

    def loss(params):
        logits, _ = model.apply(
            {**loaded.variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return metrics.cross_entropy(logits, jnp.array(labels)).mean()

    return flatten_dict(jax.jit(jax.grad(loss))(loaded.variables["params"]), sep="/")


def scale_of(path):
    """Whose gradient's norm an error is measured by: the parameter's own, but for shifts.

    A constant added to a channel is taken away by the next batch norm, exactly after a linear
    bottleneck and nearly after a ReLU6 that clips little. Such a gradient is rounding alone, so
    shifts are measured by the gradient of the scale beside them.
    """
    return path.replace("bn/bias", "bn/scale")
