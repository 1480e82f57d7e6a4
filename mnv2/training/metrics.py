"""What is counted: sums over examples, divided once at the end, never means of means."""

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from mnv2.ops.precision import accumulator

Sums = dict[str, Array]


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Each example's loss, in float32 at least; `smoothing` is spread over all classes evenly."""
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits.astype(accumulator(logits.dtype)), targets)


def count(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    losses: Float[Array, " b"],
    mask: Float[Array, " b"] | None = None,
) -> Sums:
    """Sums over the examples whose mask is 1: loss, top-1 and top-5 hits, and examples."""
    mask = jnp.ones_like(losses) if mask is None else mask
    # How many classes score higher than the right one, ties counted against it.
    right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    others = jnp.arange(logits.shape[-1]) != labels[:, None]
    rank = jnp.sum((logits >= right) & others, axis=-1)
    return {
        "loss": jnp.sum(losses * mask),
        "top1": jnp.sum((rank < 1) * mask),
        "top5": jnp.sum((rank < 5) * mask),
        "examples": jnp.sum(mask),
    }


def summarize(batches: Iterable[Sums]) -> dict[str, float]:
    """Adds up sums of batches: mean loss, accuracies in [0, 1], examples."""
    batches = jax.device_get(list(batches))
    total = {
        name: float(sum(np.float64(sums[name]) for sums in batches))
        for name in ("loss", "top1", "top5", "examples")
    }
    examples = max(total["examples"], 1.0)
    return {
        "loss": total["loss"] / examples,
        "accuracy": total["top1"] / examples,
        "top5_accuracy": total["top5"] / examples,
        "examples": total["examples"],
    }


def first_not_finite(batches: Sequence[Sums]) -> int | None:
    """The first batch whose loss is not finite; None if there is none."""
    losses = jax.device_get([sums["loss"] for sums in batches])
    return next((i for i, loss in enumerate(losses) if not np.isfinite(loss)), None)


def skipped(batches: Sequence[Sums]) -> int:
    """How many of the steps were skipped."""
    return sum(int(sums.get("skipped", 0)) for sums in jax.device_get(list(batches)))
