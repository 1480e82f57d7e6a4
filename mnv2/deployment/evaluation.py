"""Evaluates weights in JAX, or an exported file, on a data set."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mnv2 import data
from mnv2.deployment.exported import Exported
from mnv2.pretrained import Pretrained
from mnv2.training.evaluation import Evaluation, evaluate_network, evaluate_weights
from mnv2.training.step import StepMetrics, cross_entropy, measure


def evaluate_any(
    network: Pretrained | Exported, dataset: data.Dataset, split: str, batch_size: int
) -> Evaluation:
    """Evaluates weights in JAX or an exported file on every example of `split` once."""
    if isinstance(network, Pretrained):
        return evaluate_weights(network, dataset, split, batch_size)

    @jax.jit
    def metrics(logits: Array, label: Array, mask: Array) -> StepMetrics:
        return measure(logits, label, cross_entropy(logits, label), mask)

    def step(batch: Any) -> tuple[StepMetrics, Int[Array, " b"]]:
        logits = jnp.asarray(network.logits(np.asarray(batch["image"])))
        return metrics(logits, batch["label"], batch["mask"]), jnp.argmax(logits, axis=-1)

    return evaluate_network(step, network, dataset, split, batch_size)
