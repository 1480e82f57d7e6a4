"""The compiled steps of a run: one update, one batch of an evaluation, over all devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from mnv2 import data
from mnv2.runtime.errors import check_choice
from mnv2.training import metrics
from mnv2.training.devices import AXIS, place, shard
from mnv2.training.optimizer import create_optimizer, create_schedule
from mnv2.training.state import TrainState

ON_NAN = ("stop", "skip")


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    label_smoothing: float,
    ema_decay: float,
    classifier_only: bool = False,
    skip_nan: bool = False,
) -> tuple[TrainState, metrics.Sums]:
    """One update from one device's share of a batch, and the sums over all devices.

    Gradients are averaged over devices. With `classifier_only`, nothing is computed for the
    gradients of the backbone. With `skip_nan`, a step whose loss or gradients are not finite
    changes nothing but the counts of steps; its sums are 0, and `skipped` is 1.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))

    def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, metrics.Sums]]:
        if classifier_only:
            held = jax.lax.stop_gradient(params)
            params = {**held, "classifier": params["classifier"]}
        logits: Any
        logits, changed = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        losses = metrics.cross_entropy(logits, batch["label"], label_smoothing)
        sums = metrics.count(logits, batch["label"], losses)
        return jnp.mean(losses), (changed.get("batch_stats", state.batch_stats), sums)

    gradients, (batch_stats, sums) = jax.grad(loss_of, has_aux=True)(state.params)
    gradients = jax.lax.pmean(gradients, AXIS)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = None
    if state.ema is not None:
        ema = optax.incremental_update(params, state.ema, 1 - ema_decay)
    after = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
    sums = jax.lax.psum(sums, AXIS)
    if not skip_nan:
        return after, sums
    finite = jnp.isfinite(sums["loss"]) & jnp.isfinite(optax.global_norm(gradients))

    def unless_nan(new: jax.Array, old: jax.Array) -> jax.Array:
        # Counts go on, so that the schedule stays in step.
        counts = jnp.issubdtype(new.dtype, jnp.integer)
        return new if counts else jnp.where(finite, new, old)

    sums = {name: jnp.where(finite, value, 0) for name, value in sums.items()}
    return jax.tree.map(unless_nan, after, state), {**sums, "skipped": 1.0 - finite}


def eval_step(state: TrainState, batch: dict[str, jax.Array], *, model: nn.Module) -> metrics.Sums:
    """The sums over all devices from one device's share of a batch, counted by its mask."""
    logits: Any = model.apply(state.variables(), batch["image"], train=False)
    losses = metrics.cross_entropy(logits, batch["label"])
    counts = metrics.count(logits, batch["label"], losses, batch["mask"])
    return jax.lax.psum(counts, AXIS)


class Steps(NamedTuple):
    """What runs on the devices, and what it was made from."""

    place: Callable[[TrainState], TrainState]
    shard: Callable[[data.Batch], data.Batch]
    train: Callable[..., tuple[TrainState, metrics.Sums]]
    evaluate: Callable[..., metrics.Sums]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


def step_settings(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """All of a config that the compiled steps depend on beside the network."""
    check_choice(config.on_nan, ON_NAN, "on_nan")
    names = ("optimization", "batch_size", "label_smoothing", "ema_decay", "on_nan")
    return ml_collections.FrozenConfigDict({name: config[name] for name in names})


@functools.cache  # runs that differ in their seed alone share what is compiled
def compile_steps(
    model: nn.Module,
    settings: ml_collections.FrozenConfigDict,
    total_steps: int,
    examples: int,
    devices: tuple[jax.Device, ...] | None = None,
) -> Steps:
    """train_step and eval_step over `devices` (all of them, if None)."""
    schedule = create_schedule(
        settings.optimization,
        total_steps=total_steps,
        examples=examples,
        batch_size=settings.batch_size,
    )
    optimizer = create_optimizer(settings.optimization, schedule)
    train = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        label_smoothing=settings.label_smoothing,
        ema_decay=settings.ema_decay,
        classifier_only=frozen(settings.optimization),
        skip_nan=settings.on_nan == "skip",
    )
    evaluate = functools.partial(eval_step, model=model)
    # State, key and sums have no device axis (None); a batch's first axis is that of devices (0).
    on_each = functools.partial(jax.pmap, axis_name=AXIS, devices=devices, out_axes=None)
    return Steps(
        # As the steps return it, or the second step would be compiled anew.
        place=functools.partial(place, devices=devices),
        shard=functools.partial(shard, devices=devices),
        train=on_each(train, in_axes=(None, 0, None), donate_argnums=(0,)),
        evaluate=on_each(evaluate, in_axes=(None, 0)),
        optimizer=optimizer,
        schedule=schedule,
    )


def frozen(optimization: Any) -> bool:
    """Whether a config trains the classifier alone."""
    return optimization.get("backbone_rate", 1.0) == 0
