"""A plain training step of any Flax network: forward, backward, SGD with momentum."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax


def sgd_step(
    model: nn.Module, learning_rate: float
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Returns the optimiser and the step, which is not compiled yet.

    The step takes the parameters, the statistics of batch norm, the state of the optimiser, images
    and labels. It returns the first three as they are after the step, and the loss.
    """
    optimizer = optax.sgd(learning_rate, momentum=0.9)

    def loss_of(params: Any, statistics: Any, images: Any, labels: Any) -> Any:
        logits: Any
        logits, changed = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    def step(params: Any, statistics: Any, state: Any, images: Any, labels: Any) -> Any:
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, statistics, images, labels
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state, loss

    return optimizer, step
