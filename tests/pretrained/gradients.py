"""The gradients of one training step, to compare with those of other frameworks.

A gradient jumps if an activation crosses a kink of ReLU6. Among a million activations, a few are so
close to a kink that rounding decides. SHIFT is added to every bias of batch norm: it moves most
activations to the middle of ReLU6, so that few of them are near a kink.
"""

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mnv2.ops import traced_for
from mnv2.training.step import cross_entropy
from tests.pretrained.reference import SHIFT as SHIFT

TOLERANCE = 1e-3


def training_gradients(loaded, images, labels, platform):
    """Returns the gradients by path of the cross-entropy with batch statistics, without dropout.

    `platform` is "cpu", as in training here, or PLAIN, which compiles in a third of the time.
    """
    model = loaded.model.clone(dropout=0.0)

    def loss(params):
        logits, _ = model.apply(
            {**loaded.variables, "params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, jnp.array(labels)).mean()

    with traced_for(platform):
        return flatten_dict(jax.jit(jax.grad(loss))(loaded.variables["params"]), sep="/")


def reference_path(path):
    """Returns the parameter whose gradient norm is the unit for errors in the gradient of `path`.

    That is the parameter itself, except for the biases of batch norm. The next batch norm removes a
    constant that is added to a channel: exactly after a linear bottleneck, and nearly after a ReLU6
    that clips little. The gradient of such a bias is only rounding, so the unit for it is the
    gradient of the scale in the same batch norm.
    """
    return path.replace("bn/bias", "bn/scale")
