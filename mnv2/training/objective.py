"""What a training step minimises, and its gradients: labels, mixed labels, a teacher."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.ops.precision import accumulator
from mnv2.pretrained import Preprocessing
from mnv2.training import metrics
from mnv2.training.mixing import Mixing, mix, partners


class Teacher(NamedTuple):
    """A network from which another one learns (distillation, arXiv 1503.02531).

    temperature   divides the logits of both networks before they are compared
    label_weight  of the loss of the labels; the loss against the teacher has the rest
    """

    model: nn.Module
    preprocess: Preprocessing
    temperature: float
    label_weight: float


class Objective(NamedTuple):
    """What a step minimises.

    label_smoothing  the part of a label that is spread over all classes
    mixing           of pictures and labels
    accumulate       parts of a batch that are computed one after another. Their gradients are
                     averaged, so the update is that of the whole batch. Batch norm sees one part at
                     a time, and its running statistics take one after another in.
    classifier_only  no gradients of the backbone are computed
    teacher          None without distillation
    """

    label_smoothing: float = 0.0
    mixing: Mixing = Mixing()
    accumulate: int = 1
    classifier_only: bool = False
    teacher: Teacher | None = None


def gradients(
    model: nn.Module,
    preprocess: Preprocessing,
    objective: Objective,
    variables: dict[str, Any],
    batch: dict[str, Array],
    *,
    step: Array,
    key: Array,
    dropout_key: Array,
    taught: Any = None,
) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the gradients of a batch's mean loss, batch norm's new statistics, and the sums.

    `variables` has params and batch_stats, `taught` those of the teacher. The accuracy of mixed
    pictures is that of the own label.
    """
    images, labels = batch["image"], batch["label"]
    # With nothing mixed a batch stays what it is: bytes are normalised where they are used.
    rows: dict[str, Array] = {"image": images, "label": labels}
    share = jnp.ones(())
    if objective.mixing.mixes:
        pixels = images.astype(accumulator(model.dtype))
        rows["image"], share = mix(pixels, key, step, objective.mixing)
        rows["partner"] = partners(labels)

    def loss_of(
        params: Any, batch_stats: Any, rows: dict[str, Array], key: Array
    ) -> tuple[Array, tuple[Any, metrics.Sums]]:
        if objective.classifier_only:
            held = jax.lax.stop_gradient(params)
            params = {**held, "classifier": params["classifier"]}
        logits: Any
        logits, changed = model.apply(
            {"params": params, "batch_stats": batch_stats},
            preprocess(rows["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = metrics.cross_entropy(logits, rows["label"], objective.label_smoothing)
        if "partner" in rows:
            theirs = metrics.cross_entropy(logits, rows["partner"], objective.label_smoothing)
            losses = share * losses + (1 - share) * theirs
        if objective.teacher is not None:
            losses = _distilled(objective.teacher, taught, logits, rows["image"], losses)
        sums = metrics.count(logits, rows["label"], losses)
        return jnp.mean(losses), (changed.get("batch_stats", batch_stats), sums)

    gradient = jax.grad(loss_of, has_aux=True)
    params, batch_stats = variables["params"], variables["batch_stats"]
    parts = objective.accumulate
    if parts == 1:
        found, (batch_stats, sums) = gradient(params, batch_stats, rows, dropout_key)
        return found, batch_stats, sums

    def add(carry: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, metrics.Sums]:
        before, batch_stats = carry
        number, rows = part
        key = jax.random.fold_in(dropout_key, number)
        found, (batch_stats, sums) = gradient(params, batch_stats, rows, key)
        return (jax.tree.map(jnp.add, before, found), batch_stats), sums

    divided = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
    nothing = jax.tree.map(jnp.zeros_like, params)
    (total, batch_stats), sums = jax.lax.scan(
        add, (nothing, batch_stats), (jnp.arange(parts), divided)
    )
    mean = jax.tree.map(lambda x: x / parts, total)
    return mean, batch_stats, jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)


def _distilled(
    teacher: Teacher,
    taught: Any,
    logits: Float[Array, "b classes"],
    images: Array,
    losses: Float[Array, " b"],
) -> Float[Array, " b"]:
    """Weights the losses of the labels with the distance to the teacher's probabilities.

    The distance is the Kullback-Leibler divergence at the temperature, times its square, so that
    the gradients keep their size (Hinton et al., section 2).
    """
    dtype = accumulator(logits.dtype)
    theirs: Any = teacher.model.apply(taught, teacher.preprocess(images), train=False)
    target = jax.nn.log_softmax(theirs.astype(dtype) / teacher.temperature)
    ours = jax.nn.log_softmax(logits.astype(dtype) / teacher.temperature)
    distance = jnp.sum(jnp.exp(target) * (target - ours), axis=-1) * teacher.temperature**2
    return teacher.label_weight * losses + (1 - teacher.label_weight) * distance
