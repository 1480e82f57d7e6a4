"""What a step computes: loss, gradients, update, averages and metrics; and a batch of evaluation.

The functions of a step run inside `jax.pmap` over the axis AXIS. What they call a batch is the part
of one device; a state, a key and what they return of them are the same on all devices. The state
has no device axis: every device computes the same new state. pmap is jit(shard_map) underneath.
With several processes it also copies the state at each step: 7 ms for the 580 arrays of the
ablation's network on two CPU processes.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Real, UInt8

from mnv2.ops import DeviceGroup, platform_of, traced_for
from mnv2.ops.precision import accumulator
from mnv2.preprocess import Pipeline
from mnv2.preprocess.device import augment
from mnv2.preprocess.mixing import partners
from mnv2.pretrained import Preprocessing
from mnv2.training.config import Optimization
from mnv2.training.optimizer import create_optimizer, create_schedule
from mnv2.training.state import TrainState

AXIS = "devices"
MOST_STEPS = 100  # of one call of `train_steps`

type Devices = tuple[jax.Device, ...] | None  # None: all, also those of other processes
# image (b h w c), label (b); in training index, epoch and position (b) of the examples, in
# evaluation mask (b): see `data.Batch`
type Batch = Mapping[str, Any]


# Metrics: one struct, from which the log, TensorBoard and the carry of `train_steps` follow.

PER_EXAMPLE = "a sum over examples, which is divided by their number"
PER_STEP = "a value of each step; the mean over the steps that were not skipped"
TOTAL = "a number of examples or steps; the sum"
LARGEST = "a number of steps; the largest"


def _metric(kind: str) -> Any:
    return flax.struct.field(default=None, metadata={"kind": kind})


@flax.struct.dataclass
class StepMetrics:
    """What a step measures, over all devices; None for what it does not.

    A field NAME appears as train/NAME in metrics.jsonl and TensorBoard, or validation/NAME and
    test/NAME if `eval_step` measures it too. Its kind says how several steps become one number.

    loss               the objective; of evaluation, the cross entropy
    accuracy           top-1 hits; of mixed pictures, those of the own label
    top5_accuracy      top-5 hits
    examples           their number
    gradient_norm      of the mean gradient of all devices
    skipped_steps      1 if the step was skipped; only with on_nan = skip, as the next one
    skipped_in_a_row   the skipped steps up to this one
    """

    loss: Any = _metric(PER_EXAMPLE)
    accuracy: Any = _metric(PER_EXAMPLE)
    top5_accuracy: Any = _metric(PER_EXAMPLE)
    examples: Any = _metric(TOTAL)
    gradient_norm: Any = _metric(PER_STEP)
    skipped_steps: Any = _metric(TOTAL)
    skipped_in_a_row: Any = _metric(LARGEST)


KINDS: dict[str, str] = {
    field.name: field.metadata["kind"] for field in dataclasses.fields(StepMetrics)
}
ONLY_WITH_SKIPPING = ("skipped_steps", "skipped_in_a_row")


def unstack(calls: Iterable[tuple[StepMetrics, int]]) -> list[StepMetrics]:
    """Returns the metrics of each step from those of calls of several steps, and their numbers.

    Waits for the devices.
    """
    steps = []
    for metrics, count in jax.device_get(list(calls)):
        stacked = jax.tree.map(np.atleast_1d, metrics)
        steps += [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
    return steps


def summarize(steps: Iterable[StepMetrics]) -> dict[str, float]:
    """Returns one number for each metric that the steps have, by its name.

    Means over examples and steps are left out if all steps were skipped.
    """
    steps = jax.device_get(list(steps))
    summary = {}
    examples = sum(float(step.examples) for step in steps)
    for name, kind in KINDS.items():
        kept = [step for step in steps if not step.skipped_steps]
        of = [float(getattr(x, name)) for x in (kept if kind == PER_STEP else steps)
              if getattr(x, name) is not None]  # fmt: skip
        if kind == PER_EXAMPLE and of and examples:
            summary[name] = float(np.sum(np.asarray(of, np.float64))) / examples
        elif kind == PER_STEP and of:
            summary[name] = float(np.mean(of))
        elif kind == TOTAL and of:
            summary[name] = sum(of)
        elif kind == LARGEST and of:
            summary[name] = max(of)
    return summary


def first_not_finite(steps: Sequence[StepMetrics]) -> int | None:
    """Returns the index of the first step with a metric that is not finite; None without one."""
    for i, step in enumerate(jax.device_get(list(steps))):
        if not all(np.isfinite(value).all() for value in jax.tree.leaves(step)):
            return i
    return None


def measure(
    logits: Float[Array, "b classes"],
    labels: Int[Array, " b"],
    losses: Float[Array, " b"],
    mask: Float[Array, " b"] | None = None,
) -> StepMetrics:
    """Sums over the examples of this device whose mask is 1 (None: all)."""
    mask = jnp.ones_like(losses) if mask is None else mask
    # The number of classes before the right one, as argmax orders them: of equal ones, the first
    # is first. An example with a logit that is not finite is no hit.
    right = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    is_before = jnp.arange(logits.shape[-1]) < labels[:, None]
    rank = jnp.sum((logits > right) | ((logits == right) & is_before), axis=-1)
    usable = mask * jnp.all(jnp.isfinite(logits), axis=-1)
    return StepMetrics(
        loss=jnp.sum(losses * mask),
        accuracy=jnp.sum((rank < 1) * usable),
        top5_accuracy=jnp.sum((rank < 5) * usable),
        examples=jnp.sum(mask),
    )


# The loss: labels, mixed labels, a teacher.


def cross_entropy(
    logits: Float[Array, "b classes"], labels: Int[Array, " b"], smoothing: float = 0.0
) -> Float[Array, " b"]:
    """Computes each example's loss, in float32 or better.

    Label smoothing spreads `smoothing` of the target evenly over all classes.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1])
    targets = optax.smooth_labels(targets, smoothing)
    return optax.softmax_cross_entropy(logits.astype(accumulator(logits.dtype)), targets)


class Teacher(NamedTuple):
    """A network from which another one learns (distillation, arXiv 1503.02531).

    temperature   divides the logits of both networks before they are compared
    label_weight  of the loss of the labels; the loss against the teacher has the rest
    """

    model: nn.Module
    preprocess: Preprocessing
    temperature: float
    label_weight: float


def distill(
    teacher: Teacher,
    variables: Any,
    logits: Float[Array, "b classes"],
    images: Array,
    losses: Float[Array, " b"],
) -> Float[Array, " b"]:
    """Weights the losses of the labels with the distance to the teacher's probabilities.

    `variables` are the teacher's. The distance is the Kullback-Leibler divergence at the
    temperature, times its square, so that the gradients keep their size (Hinton et al., section 2).
    """
    dtype = accumulator(logits.dtype)
    target: Any = teacher.model.apply(variables, teacher.preprocess(images), train=False)
    target = jax.nn.log_softmax(target.astype(dtype) / teacher.temperature)
    ours = jax.nn.log_softmax(logits.astype(dtype) / teacher.temperature)
    distance = jnp.sum(jnp.exp(target) * (target - ours), axis=-1) * teacher.temperature**2
    return teacher.label_weight * losses + (1 - teacher.label_weight) * distance


class Objective(NamedTuple):
    """What a step minimises, and how it computes that.

    label_smoothing  the part of a label that is spread over all classes
    pipeline         what the pictures and labels of a batch go through on the devices
    accumulate       parts of a batch that are computed one after another. Their gradients are
                     averaged, so the update is that of the whole batch. Batch norm sees one part at
                     a time, and its running statistics take one after another in.
    classifier_only  no gradients of the backbone are computed
    teacher          None without distillation
    """

    label_smoothing: float = 0.0
    pipeline: Pipeline = Pipeline()
    accumulate: int = 1
    classifier_only: bool = False
    teacher: Teacher | None = None


PLAIN = Objective()


def loss_of(
    params: Any,
    batch_stats: Any,
    rows: dict[str, Array],
    key: Array,
    share: Float[Array, ""],
    teacher_variables: Any,
    *,
    model: nn.Module,
    preprocess: Preprocessing,
    objective: Objective,
) -> tuple[Float[Array, ""], tuple[Any, StepMetrics]]:
    """Computes the mean loss of this device's rows, batch norm's new statistics, and the metrics.

    `rows` has image (b h w c), label (b) and, if pictures are mixed, the label of each partner.
    `share` is that of the own picture. `preprocess` normalises the pixels.
    """
    if objective.classifier_only:
        frozen = jax.lax.stop_gradient(params)
        params = {**frozen, "classifier": params["classifier"]}
    logits: Any
    logits, changed = model.apply(
        {"params": params, "batch_stats": batch_stats},
        preprocess(rows["image"]),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    losses = cross_entropy(logits, rows["label"], objective.label_smoothing)
    if "partner" in rows:
        of_partners = cross_entropy(logits, rows["partner"], objective.label_smoothing)
        losses = share * losses + (1 - share) * of_partners
    if objective.teacher is not None:
        losses = distill(objective.teacher, teacher_variables, logits, rows["image"], losses)
    metrics = measure(logits, rows["label"], losses)
    return jnp.mean(losses), (changed.get("batch_stats", batch_stats), metrics)


def augmented(
    batch: Batch, key: Array, *, model: nn.Module, pipeline: Pipeline
) -> tuple[Real[Array, "b h w c"], Int[Array, " b"]]:
    """Returns the images and labels of a batch as training has them, but not mixed."""
    classes: int = model.num_classes
    return augment(pipeline, batch["image"], batch["label"], key, batch, classes)


def mixed(
    batch: Batch, key: Array, step: Array, *, model: nn.Module, pipeline: Pipeline
) -> tuple[dict[str, Array], Float[Array, ""]]:
    """Returns image, label and, if pictures are mixed, the partners' labels; and the own share.

    They are augmented before. Without mixing the images stay bytes, which are normalised where they
    are used.
    """
    images, labels = augmented(batch, key, model=model, pipeline=pipeline)
    if mixes := pipeline.find("mix"):
        images, share = mixes(images.astype(accumulator(model.conventions.dtype)), key, step)
        return {"image": images, "label": labels, "partner": partners(labels)}, share
    return {"image": images, "label": labels}, jnp.ones(())


def accumulated(
    gradient: Callable[..., Any],
    parts: int,
    params: Any,
    batch_stats: Any,
    rows: dict[str, Array],
    key: Array,
    *others: Any,
) -> tuple[Any, tuple[Any, StepMetrics]]:
    """Computes `gradient`, the gradient of `loss_of`, in parts of the rows, to need less memory.

    Returns the mean gradients, batch norm's statistics after the last part, and the sums of the
    metrics.
    """

    def add(carry: Any, part: tuple[Array, dict[str, Array]]) -> tuple[Any, StepMetrics]:
        before, batch_stats = carry
        number, of_part = part
        part_key = jax.random.fold_in(key, number)
        found, (batch_stats, metrics) = gradient(params, batch_stats, of_part, part_key, *others)
        return (jax.tree.map(jnp.add, before, found), batch_stats), metrics

    nothing = jax.tree.map(jnp.zeros_like, params)
    divided = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), rows)
    (total, batch_stats), metrics = jax.lax.scan(
        add, (nothing, batch_stats), (jnp.arange(parts), divided)
    )
    mean = jax.tree.map(lambda x: x / parts, total)
    return mean, (batch_stats, jax.tree.map(lambda x: jnp.sum(x, axis=0), metrics))


# One training step, and several in one call.


def train_step(
    state: TrainState,
    batch: Batch,
    key: Array,
    teacher_variables: Any = None,
    *,
    model: nn.Module,
    preprocess: Preprocessing,
    optimizer: optax.GradientTransformation,
    objective: Objective = PLAIN,
    ema_decay: float = 0.0,
    skip_nan: bool = False,
) -> tuple[TrainState, StepMetrics]:
    """Computes one update from this device's part of a batch, and the metrics of all devices.

    Gradients are averaged over devices. `key` is that of the run: the step and the device make
    others of it. With `skip_nan`, a step whose loss, gradients or update are not finite changes
    only the counts of steps; its metrics are 0, and `skipped_steps` is 1.
    """
    rows, share = mixed(batch, key, state.step, model=model, pipeline=objective.pipeline)

    loss = functools.partial(loss_of, model=model, preprocess=preprocess, objective=objective)
    gradient = jax.grad(loss, has_aux=True)
    if objective.accumulate > 1:
        gradient = functools.partial(accumulated, gradient, objective.accumulate)
    dropout_key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))
    gradients, (batch_stats, metrics) = gradient(
        state.params, state.batch_stats, rows, dropout_key, share, teacher_variables
    )

    gradients = jax.lax.pmean(gradients, AXIS)
    if isinstance(model.conventions.axis_name, DeviceGroup):
        batch_stats = jax.lax.pmean(batch_stats, AXIS)  # groups have different ones
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if state.ema is not None:
        averaged = {"params": params, "batch_stats": batch_stats}
        ema = optax.incremental_update(averaged, state.ema, 1 - ema_decay_at(state.step, ema_decay))
    after = state.replace(  # type: ignore[attr-defined]
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
    )
    metrics = jax.lax.psum(metrics, AXIS).replace(gradient_norm=norm(gradients))
    return unless_nan(state, after, metrics) if skip_nan else (after, metrics)


def unless_nan(
    before: TrainState, after: TrainState, metrics: StepMetrics
) -> tuple[TrainState, StepMetrics]:
    """Returns the state after a step, or that before it if something is not finite.

    Counts of steps increase all the same, so that the schedule keeps its time.
    """
    finite = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.gradient_norm)
    for leaf in jax.tree.leaves((after.params, after.batch_stats)):  # the update may overflow
        finite &= jnp.all(jnp.isfinite(leaf))

    def keep_if_finite(new: Array, old: Array) -> Array:
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else jnp.where(finite, new, old)

    skipped = 1 - finite.astype(jnp.int32)
    in_a_row = (before.skipped_in_a_row + 1) * skipped
    after = jax.tree.map(keep_if_finite, after, before).replace(
        skipped=before.skipped + skipped, skipped_in_a_row=in_a_row
    )
    metrics = jax.tree.map(lambda value: jnp.where(finite, value, 0), metrics)
    return after, metrics.replace(  # type: ignore[attr-defined]
        skipped_steps=skipped, skipped_in_a_row=in_a_row
    )


def train_steps(
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    rows: dict[str, Array],
    count: Array,
    key: Array,
    teacher_variables: Any = None,
    *,
    step: Callable[..., tuple[TrainState, StepMetrics]],
    metrics: StepMetrics,
) -> tuple[TrainState, StepMetrics]:
    """Computes the first `count` of MOST_STEPS updates, and the metrics of each.

    `images` and `labels` are the whole training set, on each device. `rows` says what each of
    MOST_STEPS batches consists of: see `data.Rows`. `step` is `train_step`, and `metrics`
    those of no steps, see `no_metrics`.

    The loop is one program for any `count`, so that a run does not depend on how its steps were
    divided into calls.
    """

    def one(i: Array, carry: tuple[TrainState, StepMetrics]) -> tuple[TrainState, StepMetrics]:
        state, metrics = carry
        of_batch = {name: values[i] for name, values in rows.items()}
        index = of_batch["index"]
        batch = {"image": images[index], "label": labels[index], **of_batch}
        state, new = step(state, batch, key, teacher_variables)
        return state, jax.tree.map(lambda every, x: every.at[i].set(x), metrics, new)

    return jax.lax.fori_loop(0, count, one, (state, metrics))


def no_metrics(model: Any, skip_nan: bool) -> StepMetrics:
    """Returns MOST_STEPS times what `train_step` measures, as zeros.

    To find the types by tracing the step would take as long as its compilation needs.
    """
    real = accumulator(model.conventions.dtype)
    return StepMetrics(
        **{
            name: np.zeros(MOST_STEPS, np.int32 if name in ONLY_WITH_SKIPPING else real)
            for name in KINDS
            if skip_nan or name not in ONLY_WITH_SKIPPING
        }
    )


def ema_decay_at(step: Array, decay: float) -> Array:
    """Returns the decay of the moving averages after `step` steps: min(decay, (1 + t) / (10 + t)).

    slim's warm-up: without it the average of a short run is mostly its random initial values.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


@jax.jit
def joined(arrays: Any) -> Float[Array, " n"]:
    """Joins the arrays of a tree into one vector, a copy."""
    return jnp.concatenate([array.ravel() for array in jax.tree.leaves(arrays)])


def norm(arrays: Any) -> Float[Array, ""]:
    """Computes the Euclidean norm of all arrays of a tree together.

    One sum over the joined arrays is cheaper than one for each, in spite of the copy. XLA's
    compilers add 15 kernels to the ablation's step on an H100 instead of 66 with optax.global_norm,
    and 3 % instead of 8 % to its cycles on a TPU v5e.
    """
    return jnp.linalg.norm(joined(arrays))


@jax.jit
def parameter_norms(
    params: Any, before: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the norm of all parameters, and that of their change since `joined` gave `before`.

    Not in the step, which a second norm would make a quarter longer on a TPU v5e.
    """
    now = joined(params)
    return jnp.linalg.norm(now), jnp.linalg.norm(now - before)


# Evaluation.


def eval_step(
    logits: Float[Array, "b classes"], batch: Batch
) -> tuple[StepMetrics, Int[Array, " b"]]:
    """Computes the metrics of all devices, and the predicted classes of this device's examples.

    `batch` has label (b) and mask (b), which is 0 for rows that the last batch lacks.
    """
    losses = cross_entropy(logits, batch["label"])
    metrics = measure(logits, batch["label"], losses, batch["mask"])
    return jax.lax.psum(metrics, AXIS), jnp.argmax(logits, axis=-1)


def eval_state(
    state: TrainState, batch: Batch, *, model: nn.Module, preprocess: Preprocessing
) -> tuple[StepMetrics, Int[Array, " b"]]:
    """Evaluates a state, with averaged parameters if it has some, on one batch: see `eval_step`."""
    logits: Any = model.apply(state.variables(), preprocess(batch["image"]), train=False)
    return eval_step(logits, batch)


# The devices: the one place that calls jax.pmap.


def number_of(devices: Devices = None) -> int:
    """Returns the number of devices."""
    return len(devices) if devices else jax.device_count()


def replicate[Tree](tree: Tree, devices: Devices = None) -> Tree:
    """Copies every array whole to each of `devices`, or to this process's."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard[Tree](batch: Tree, devices: Devices = None) -> Tree:
    """Splits rows over `devices`, or this process's: b ... -> devices b/devices ..."""
    count = len(devices or jax.local_devices())
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def parallel(
    function: Callable[..., Any], *, devices: Devices = None, **options: Any
) -> Callable[..., Any]:
    """Returns a function that computes on each device, by `jax.pmap` over AXIS."""
    return jax.pmap(on_platform(function, devices), axis_name=AXIS, devices=devices, **options)


def on_platform(function: Callable[..., Any], devices: Devices = None) -> Callable[..., Any]:
    """Returns a function that is traced for the platform of the devices: see `ops.traced_for`."""
    platform = platform_of((devices or jax.devices())[0])
    traced: Callable[..., Any] = traced_for(platform)(function)
    return traced


class Steps(NamedTuple):
    """The functions that run on the devices. JAX compiles each when it is first called.

    train       state, batch (devices b/devices ...), key, teacher_variables -> state, StepMetrics
    train_many  as `train_steps`; rows are (devices MOST_STEPS b/devices)
    evaluate    state, batch (devices b/devices ...) -> StepMetrics, classes (devices b/devices)
    augment     batch (b ...), key -> images (b h w c), labels, as `train` has them, but not mixed
    optimizer   the optax optimiser inside them, and its
    schedule    learning rate at a step

    `train` and `train_many` overwrite the arrays of their state.
    """

    train: Callable[..., tuple[TrainState, StepMetrics]]
    train_many: Callable[..., tuple[TrainState, StepMetrics]]
    evaluate: Callable[..., tuple[StepMetrics, Array]]
    augment: Callable[..., tuple[Array, Array]]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


@functools.cache  # runs that differ only in their seed share the compiled programs
def create_steps(
    model: nn.Module,
    preprocess: Preprocessing,
    optimization: Optimization,
    *,
    total_steps: int,
    examples: int,
    batch_size: int,
    objective: Objective = PLAIN,
    ema_decay: float = 0.0,
    skip_nan: bool = False,
    devices: Devices = None,
) -> Steps:
    """Creates the functions of a run over `devices` (default: all of them).

    `total_steps`, the number of training `examples` and the `batch_size` of all devices set the
    learning rate schedule.
    """
    schedule = create_schedule(
        optimization, total_steps=total_steps, examples=examples, batch_size=batch_size
    )
    optimizer = create_optimizer(optimization, schedule)
    step = functools.partial(
        train_step,
        model=model,
        preprocess=preprocess,
        optimizer=optimizer,
        objective=objective,
        ema_decay=ema_decay,
        skip_nan=skip_nan,
    )
    many = functools.partial(train_steps, step=step, metrics=no_metrics(model, skip_nan))
    augments = functools.partial(augmented, model=model, pipeline=objective.pipeline)
    evaluate = functools.partial(eval_state, model=model, preprocess=preprocess)
    # The state, the key and the metrics have no device axis (None). The first axis of a batch and
    # of the predictions is that of devices (0).
    each = functools.partial(parallel, devices=devices)
    return Steps(
        train=each(step, in_axes=(None, 0, None, None), out_axes=None, donate_argnums=(0,)),
        train_many=each(
            many,
            in_axes=(None, None, None, 0, None, None, None),
            out_axes=None,
            donate_argnums=(0,),
        ),
        evaluate=each(evaluate, in_axes=(None, 0), out_axes=(None, 0)),
        augment=jax.jit(on_platform(augments, devices)),
        optimizer=optimizer,
        schedule=jax.jit(schedule),  # one program, where each of its operations would be one
    )
