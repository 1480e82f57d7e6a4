"""The steps of a run on its devices: one update of the state, and one batch of an evaluation."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, UInt8

from mnv2.ops import DeviceGroup, traced_for
from mnv2.ops.precision import accumulator
from mnv2.pretrained import Preprocessing
from mnv2.training import metrics
from mnv2.training.devices import AXIS, Devices, place, platform_of, shard
from mnv2.training.durations import to_steps
from mnv2.training.evaluation import eval_state, statistics_of
from mnv2.training.look_up import look_up
from mnv2.training.mixing import Mixing
from mnv2.training.objective import Objective, Teacher
from mnv2.training.objective import gradients as objective_gradients
from mnv2.training.optimizer import create_optimizer, create_schedule
from mnv2.training.settings import Optimization, Settings
from mnv2.training.state import TrainState

MOST_STEPS = 100  # of one call of `train_many`


def train_step(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    taught: Any = None,
    *,
    model: nn.Module,
    preprocess: Preprocessing,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    ema_decay: float,
    skip_nan: bool = False,
) -> tuple[TrainState, metrics.Sums]:
    """Computes one update from this device's part of a batch, and the sums over all devices.

    Gradients are averaged over devices. `preprocess` normalises the pixels. `taught` are the
    variables of the teacher, if `objective` has one. With `skip_nan`, a step whose loss or
    gradients are not finite changes only the counts of steps; its sums are 0, and `skipped` is 1.
    """
    dropout_key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))
    gradients, batch_stats, sums = objective_gradients(
        model,
        preprocess,
        objective,
        state.raw(),
        batch,
        step=state.step,
        key=key,
        dropout_key=dropout_key,
        taught=taught,
    )
    gradients = jax.lax.pmean(gradients, AXIS)
    if isinstance(model.axis_name, DeviceGroup):
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
    sums = {**jax.lax.psum(sums, AXIS), "gradient_norm": metrics.norm(gradients)}
    if not skip_nan:
        return after, sums
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(sums["gradient_norm"])
    for leaf in jax.tree.leaves((params, batch_stats)):  # the update itself may overflow
        finite &= jnp.all(jnp.isfinite(leaf))

    def unless_nan(new: Array, old: Array) -> Array:
        # Counts of steps increase all the same, so that the schedule keeps its time.
        is_count = jnp.issubdtype(new.dtype, jnp.integer)
        return new if is_count else jnp.where(finite, new, old)

    skipped = 1 - finite.astype(jnp.int32)
    after = jax.tree.map(unless_nan, after, state).replace(
        skipped=state.skipped + skipped,
        skipped_in_a_row=(state.skipped_in_a_row + 1) * skipped,
    )
    sums = {name: jnp.where(finite, value, 0) for name, value in sums.items()}
    return after, {**sums, "skipped": skipped, "skipped_in_a_row": after.skipped_in_a_row}


def train_steps(
    state: TrainState,
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    rows: dict[str, Array],
    count: Array,
    key: Array,
    taught: Any = None,
    *,
    step: Callable[..., tuple[TrainState, metrics.Sums]],
    sums: metrics.Sums,
    pad: int,
) -> tuple[TrainState, metrics.Sums]:
    """Computes the first `count` of MOST_STEPS updates, and the sums of each.

    `images` and `labels` are the whole training set. `rows` has what each of MOST_STEPS batches
    consists of: see `data.train_rows`. `step` is `train_step`, and `sums` those of no steps.

    The loop is one program for any `count`, so that a run does not depend on how its steps were
    divided into calls.
    """

    def batch(i: Array) -> dict[str, Array]:
        these = {name: values[i] for name, values in rows.items()}
        return {"image": look_up(images, these, pad), "label": labels[these["index"]]}

    def body(i: Array, carry: tuple[TrainState, metrics.Sums]) -> tuple[TrainState, metrics.Sums]:
        state, sums = carry
        state, new = step(state, batch(i), key, taught)
        return state, jax.tree.map(lambda every, one: every.at[i].set(one), sums, new)

    return jax.lax.fori_loop(0, count, body, (state, sums))


def train_together(
    states: tuple[TrainState, ...],
    images: UInt8[Array, "n h w c"],
    labels: Int[Array, " n"],
    rows: tuple[dict[str, Array], ...],
    count: Array,
    keys: tuple[Array, ...],
    rates: tuple[Array, ...],
    taught: Any = None,
    *,
    step_at: Callable[[Array], Callable[..., tuple[TrainState, metrics.Sums]]],
    sums: metrics.Sums,
    pad: int,
) -> tuple[tuple[TrainState, metrics.Sums], ...]:
    """Computes `train_steps` for several runs, in one program over all of them.

    The runs differ only in what is given for each; `rates` are learning rates, for which `step_at`
    returns `train_step`.
    """

    def one(
        state: TrainState, rows: dict[str, Array], key: Array, rate: Array
    ) -> tuple[TrainState, metrics.Sums]:
        step = step_at(rate)
        return train_steps(
            state, images, labels, rows, count, key, taught, step=step, sums=sums, pad=pad
        )

    of_runs = zip(states, rows, keys, rates, strict=True)
    results = jax.vmap(one)(*jax.tree.map(lambda *arrays: jnp.stack(arrays), *of_runs))

    def of_run(run: int) -> tuple[TrainState, metrics.Sums]:
        return jax.tree.map(lambda x: x[run], results)

    return tuple(map(of_run, range(len(states))))


def _no_sums(model: nn.Module, skip_nan: bool) -> metrics.Sums:
    """Returns MOST_STEPS times what `train_step` sums, as zeros.

    To find the names and types by tracing the step would take as long as its compilation needs.
    """
    names = ("loss", "top1", "top5", "examples", "gradient_norm")
    sums = {name: np.zeros(MOST_STEPS, accumulator(model.dtype)) for name in names}
    counts = ("skipped", "skipped_in_a_row") if skip_nan else ()
    return {**sums, **{name: np.zeros(MOST_STEPS, np.int32) for name in counts}}


def ema_decay_at(step: Array, decay: float) -> Array:
    """Returns the decay of the moving averages after `step` steps: min(decay, (1 + t) / (10 + t)).

    slim's warm-up: without it the average of a short run is mostly its random initial values.
    """
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


class Steps(NamedTuple):
    """The functions that run on the devices, with the optimiser and schedule inside them.

    JAX compiles `train`, `train_many`, `train_together`, `evaluate` and `statistics` when they are
    first called.
    """

    place: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    train: Callable[..., tuple[TrainState, metrics.Sums]]
    train_many: Callable[..., tuple[TrainState, metrics.Sums]]
    train_together: Callable[..., tuple[tuple[TrainState, metrics.Sums], ...]]
    evaluate: Callable[..., tuple[metrics.Sums, Array]]
    statistics: Callable[..., Any]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def create_steps(
    model: nn.Module,
    settings: Settings,
    preprocess: Preprocessing,
    *,
    total_steps: int,
    examples: int,
    teacher: Teacher | None = None,
    devices: Devices = None,
) -> Steps:
    """Creates the steps of a run over `devices` (default: all of them).

    `total_steps` and the number of training `examples` set the learning rate schedule.
    """
    objective = Objective(
        settings.label_smoothing,
        mixing_of(settings, total_steps, examples),
        settings.accumulate,
        settings.optimization.classifier_only,
        teacher,
    )
    return _create_steps(
        model,
        preprocess,
        settings.optimization,
        batch_size=settings.batch_size,
        objective=objective,
        ema_decay=settings.ema_decay,
        skip_nan=settings.on_nan == "skip",
        pad=settings.data.pad,
        total_steps=total_steps,
        examples=examples,
        devices=devices,
    )


def mixing_of(settings: Settings, total_steps: int, examples: int) -> Mixing:
    """Returns how the pictures of a run are mixed, and until which of its steps."""
    until = total_steps
    if settings.mix_until is not None:
        until = to_steps(settings.mix_until, examples=examples, batch_size=settings.batch_size)
    return Mixing(settings.mixup, settings.cutmix, min(until, total_steps))


def forget() -> None:
    """Drops the steps that later runs would share, with their compiled programs."""
    _create_steps.cache_clear()


@functools.cache  # runs that differ only in their seed share the compiled programs
def _create_steps(
    model: nn.Module,
    preprocess: Preprocessing,
    optimization: Optimization,
    *,
    batch_size: int,
    objective: Objective,
    ema_decay: float,
    skip_nan: bool,
    pad: int,
    total_steps: int,
    examples: int,
    devices: Devices,
) -> Steps:
    schedule_at = functools.partial(
        create_schedule,
        optimization,
        total_steps=total_steps,
        examples=examples,
        batch_size=batch_size,
    )

    def step_with(optimizer: optax.GradientTransformation) -> Callable[..., Any]:
        return functools.partial(
            train_step,
            model=model,
            preprocess=preprocess,
            optimizer=optimizer,
            objective=objective,
            ema_decay=ema_decay,
            skip_nan=skip_nan,
        )

    def step_at(rate: Array) -> Callable[..., Any]:
        return step_with(create_optimizer(optimization, schedule_at(peak=rate)))

    schedule = schedule_at()
    optimizer = create_optimizer(optimization, schedule)
    train, sums = step_with(optimizer), _no_sums(model, skip_nan)
    evaluate = functools.partial(eval_state, model=model, preprocess=preprocess)
    statistics = functools.partial(statistics_of, model=model, preprocess=preprocess)

    # The state, the key and the sums have no device axis (None). The first axis of a batch and of
    # the predictions is that of devices (0).
    def on_each(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def on_this_platform(*arguments: Any) -> Any:
            with traced_for(platform_of(devices)):
                return function(*arguments)

        return jax.pmap(on_this_platform, axis_name=AXIS, devices=devices, **options)

    def taught_on_each(function: Callable[..., Any], *axes: int | None) -> Callable[..., Any]:
        """Places a function of a state on the devices; the teacher, its last argument, may lack."""
        mapped = on_each(function, in_axes=(*axes, None), out_axes=None, donate_argnums=(0,))

        def with_or_without_teacher(*arguments: Any) -> Any:
            return mapped(*arguments, *(None,) * (len(axes) + 1 - len(arguments)))

        return with_or_without_teacher

    return Steps(
        # Placed as the steps return it; otherwise the second step would compile again.
        place=functools.partial(place, devices=devices),
        shard=functools.partial(shard, devices=devices),
        train=taught_on_each(train, None, 0, None),
        train_many=taught_on_each(
            functools.partial(train_steps, step=train, sums=sums, pad=pad),
            *(None, None, None, 0, None, None),
        ),
        train_together=taught_on_each(
            functools.partial(train_together, step_at=step_at, sums=sums, pad=pad),
            *(None, None, None, 0, None, None, None),
        ),
        evaluate=on_each(evaluate, in_axes=(None, 0), out_axes=(None, 0)),
        statistics=on_each(statistics, in_axes=(None, 0, None), out_axes=None),
        optimizer=optimizer,
        schedule=schedule,
    )
