"""Opens weights of any kind, an exported file too, as a command was asked to use them."""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from mnv2 import data
from mnv2.deployment.exported import Exported, is_exported, open_exported
from mnv2.pretrained import Pretrained
from mnv2.pretrained.options import load_as_asked, read_class_names
from mnv2.runtime.errors import UserError
from mnv2.training.evaluation import Evaluation, evaluate_network, evaluate_weights
from mnv2.training.step import StepMetrics, cross_entropy, measure

FIXED = ("image_size", "mean", "std")  # options that an exported file leaves no choice about


def open_as_asked(arguments: argparse.Namespace) -> Pretrained | Exported:
    """Opens weights that classify, or an exported file, with the options of a command.

    Raises UserError as `load_as_asked` does, and for options that an exported file cannot follow.
    """
    if not is_exported(arguments.weights):
        return load_as_asked(arguments)
    exported = open_exported(arguments.weights)
    for name in FIXED:
        if getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} is fixed in the exported file {arguments.weights}: export it again"
            )
    if arguments.resize is not None:
        preprocess = exported.preprocess.with_view(arguments.resize)
        about = dataclasses.replace(exported.description, preprocess=preprocess)
        exported = dataclasses.replace(exported, description=about)
    if arguments.classes is None:
        return exported
    return exported.with_class_names(read_class_names(arguments.classes), str(arguments.classes))


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
