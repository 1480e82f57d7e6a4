"""One run: train a network on a data set, evaluate it, remember the result."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from clu import metric_writers
from flax.traverse_util import flatten_dict

from mnv2 import data, metrics, pretrained
from mnv2.analysis import complexity
from mnv2.checkpoint import Checkpoints
from mnv2.durations import to_steps
from mnv2.errors import UserError, check_choice, check_positive
from mnv2.files import append_line, keep_lines, write_json
from mnv2.models import create_model, describe
from mnv2.optimizer import create_optimizer, create_schedule
from mnv2.pretrained import native
from mnv2.progress import Progress
from mnv2.state import TrainState, create_state

AXIS = "devices"
RESULT = "result.json"
METRICS = "metrics.jsonl"


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, *, label: str = "run"
) -> dict[str, Any]:
    """Trains as `config` says, going on from the newest checkpoint in `workdir`.

    Looks at the validation split on the way and at the test split once, at the end. Writes
    TensorBoard's events, metrics.jsonl, checkpoints, and at last result.json, which it returns.
    """
    dataset, model, shape, pixels, durations, on_devices = build(config)
    total_steps, eval_every, checkpoint_every = durations
    batch_size = config.batch_size

    state = create_state(
        model, on_devices.optimizer, shape, seed=config.seed, ema=config.ema_decay > 0
    )
    if starts_from_weights(config):
        state = adopt(state, load_backbone(config.weights))
    native.write_description(
        workdir,
        native.describe(
            model,
            shape[2],
            pretrained.Preprocessing(mean=pixels.mean, std=pixels.std),
            shape[:2],
            dataset.class_names,
        ),
    )
    # Closed whatever happens, so that a checkpoint on its way to the disk arrives.
    with (
        contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints,
        contextlib.closing(metric_writers.SummaryWriter(str(workdir))) as writer,
    ):
        state, seconds = checkpoints.restore(state)
        state = on_devices.place(state)
        first_step = int(state.step)
        keep_lines(workdir / METRICS, lambda line: json.loads(line)["step"] <= first_step)
        writer.write_hparams(_hparams(config))

        batches = data.train_batches(
            dataset,
            batch_size,
            seed=config.seed,
            first_step=first_step,
            size=shape[:2],
            augmentation=config.data.augmentation,
            pad=config.data.pad,
            pixels=pixels,
        )
        view = functools.partial(data.eval_image, size=shape[:2], pixels=pixels)

        def report(step: int, values: dict[str, float]) -> None:
            scalars = {name: x for name, x in values.items() if not name.endswith("/examples")}
            writer.write_scalars(step, scalars)
            append_line(workdir / METRICS, json.dumps({"step": step, **values}))

        def validate(split: str, step: int) -> dict[str, float]:
            summary = evaluate(
                on_devices.evaluate, state, dataset, split, config.eval_batch_size, view
            )
            report(step, {f"{split}/{name}": value for name, value in summary.items()})
            writer.flush()
            return summary

        key = jax.random.key(config.seed)
        progress = Progress(label, total_steps, batch_size, seconds)
        progress.say("compiling")
        began, compiled_in = time.perf_counter(), 0.0
        window: list[metrics.Sums] = []
        batches = progress.watch(batches, idle=lambda: _finished(window))
        for step, batch in zip(range(first_step + 1, total_steps + 1), batches, strict=False):
            if step == first_step + 1:
                writer.write_images(step, {"train/input": _picture(batch["image"][:8], pixels)})
            state, sums = on_devices.train(state, shard(batch), key)
            window.append(sums)
            if step == first_step + 1:
                jax.block_until_ready(state)  # compiled: from here on steps are timed
                compiled_in = time.perf_counter() - began
                progress.start(step)

            last = step == total_steps
            evaluates = last or (eval_every and step % eval_every == 0)
            saves = last or (checkpoint_every and step % checkpoint_every == 0)
            if evaluates or saves or step % config.log_every == 0:
                summary = metrics.summarize(window)
                window.clear()
                progress.stop(step)
                learning_rate = float(on_devices.schedule(step - 1))
                _stop_if_not_finite(summary["loss"], step, learning_rate)
                values = {f"train/{name}": summary[name] for name in ("loss", "accuracy")}
                values["train/learning_rate"] = learning_rate
                values["train/images_per_second"] = progress.images_per_second
                values["train/waiting_for_input"] = progress.waiting
                report(step, values)
                progress.show(step, summary["loss"])
                if evaluates and dataset.validation:
                    validate("validation", step)
                if saves:
                    checkpoints.save(step, state, progress.seconds)
                progress.start(step)

        test = validate("test", total_steps)
    progress.clear()
    result = {
        "test": test,
        "parameters": complexity.parameters(model, shape),
        "multiply_adds": complexity.multiply_adds(model, shape),
        "steps": total_steps,
        "images_per_second": total_steps * batch_size / progress.seconds,
        "train_seconds": progress.seconds,
        "waiting_for_input": progress.waiting,
        "first_step_seconds": compiled_in,  # compilation, where it is not remembered
    }
    write_json(workdir / RESULT, result)
    return result


def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    key: jax.Array,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    label_smoothing: float,
    ema_decay: float,
    frozen: bool = False,
) -> tuple[TrainState, metrics.Sums]:
    """One update from one device's share of a batch; gradients are averaged over devices.

    Where the backbone is `frozen`, nothing is computed for its gradients.
    """
    key = jax.random.fold_in(jax.random.fold_in(key, state.step), jax.lax.axis_index(AXIS))

    def loss_of(params: Any) -> tuple[jax.Array, tuple[Any, metrics.Sums]]:
        if frozen:
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
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema), sums


def eval_step(state: TrainState, batch: dict[str, jax.Array], *, model: nn.Module) -> metrics.Sums:
    """One device's share of a batch, counted by its mask."""
    logits: Any = model.apply(state.variables(), batch["image"], train=False)
    losses = metrics.cross_entropy(logits, batch["label"])
    return metrics.count(logits, batch["label"], losses, batch["mask"])


def shard(batch: data.Batch, devices: int | None = None) -> data.Batch:
    """Splits each array's first axis over this process's devices: b ... -> devices b/devices ..."""
    devices = devices or jax.local_device_count()
    return jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch)


def evaluate(
    eval_step: Callable[..., metrics.Sums],
    state: TrainState,
    dataset: data.Dataset,
    split: str,
    batch_size: int,
    view: Callable[..., Any],
) -> dict[str, float]:
    """Loss and accuracies over every example of `split` as `view` shows it, each counted once.

    `batch_size` is rounded up to a multiple of the devices; what a batch lacks is masked.
    """
    devices = jax.local_device_count()
    batches = data.eval_batches(dataset, split, -(-batch_size // devices) * devices, view=view)
    return metrics.summarize(eval_step(state, shard(batch)) for batch in batches)


class Steps(NamedTuple):
    """What runs on the devices, and what it was made from."""

    place: Callable[[TrainState], TrainState]
    train: Callable[..., tuple[TrainState, metrics.Sums]]
    evaluate: Callable[..., metrics.Sums]
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule


class Parts(NamedTuple):
    """What a config describes, built; nothing is compiled yet."""

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    pixels: data.Pixels
    durations: tuple[int, int, int]  # steps: in all, between evaluations, between checkpoints
    on_devices: Steps


def build(config: ml_collections.ConfigDict) -> Parts:
    """Builds all that a run needs. Raises UserError if the config does not describe a run."""
    dataset, model = open_data(config), build_model(config)
    shape = image_shape(config, dataset)
    check_choice(config.data.augmentation, data.AUGMENTATIONS, "augmentation")
    examples = dataset.num_examples("train")
    total, evaluation, checkpoint = (
        to_steps(config[name], examples=examples, batch_size=config.batch_size, what=name)
        for name in ("duration", "eval_every", "checkpoint_every")
    )
    check_positive(total, "duration")
    on_devices = compile_steps(model, step_settings(config), total, examples)
    pixels = data.Pixels()
    if config.get("weights"):
        preprocess = load_backbone(config.weights).preprocess
        pixels = data.Pixels(shape[2], preprocess.mean, preprocess.std)
    return Parts(dataset, model, shape, pixels, (total, evaluation, checkpoint), on_devices)


def open_data(config: ml_collections.ConfigDict) -> data.Dataset:
    """The data set of a config, prepared if it was not, and checked against the batch size."""
    if config.batch_size < 1 or config.batch_size % jax.device_count():
        raise UserError(
            f"batch_size must be a multiple of the {jax.device_count()} devices, "
            f"got {config.batch_size}"
        )
    return data.open_dataset(config.data.name, config.data.dir, config.data.validation)


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
    """The network of a config, for the data set's classes, synchronised over devices.

    Where the config names weights, the network is theirs, changed where config.model says so.
    """
    starts_from_weights(config)
    fields = {**config.model, "num_classes": open_data(config).num_classes, "axis_name": AXIS}
    if not config.get("weights"):
        return create_model(fields.pop("name"), **fields)
    name, theirs = describe(load_backbone(config.weights).model)
    return create_model(name, **{**theirs, **fields, "bn_frozen": _frozen(config.optimization)})


def starts_from_weights(config: ml_collections.ConfigDict) -> bool:
    """True unless a config names no weights, or only their network."""
    if "weights" not in config:
        return False
    if not config.weights:
        raise UserError("no weights given: set config.weights to a file, as --config.weights FILE")
    check_choice(config.start, ("weights", "scratch"), "start")
    return config.start == "weights"


@functools.cache
def load_backbone(weights: str) -> pretrained.Pretrained:
    """What a file or a hub's repository holds, without its classifier."""
    return pretrained.load(weights).backbone()


def adopt(state: TrainState, backbone: pretrained.Pretrained) -> TrainState:
    """A fresh state with the parameters and statistics of `backbone`; the classifier stays new."""

    def taken(fresh: Any, given: Any) -> Any:
        # Copies, since a step overwrites the state's arrays.
        return {**fresh, **jax.tree.map(jnp.copy, given)}

    theirs = backbone.variables
    return state.replace(  # type: ignore[attr-defined]
        params=taken(state.params, theirs["params"]),
        batch_stats=taken(state.batch_stats, theirs["batch_stats"]),
        ema=None if state.ema is None else taken(state.ema, theirs["params"]),
    )


def _frozen(optimization: Any) -> bool:
    return optimization.get("backbone_rate", 1.0) == 0


def image_shape(config: ml_collections.ConfigDict, dataset: data.Dataset) -> tuple[int, int, int]:
    """(height, width, channels) of what the network sees."""
    height, width, channels = dataset.image_shape
    if config.get("weights"):
        channels = load_backbone(config.weights).channels
    if config.data.image_size:
        height = width = config.data.image_size
    if height is None or width is None:
        raise UserError(f"images of {dataset.name} differ in size: set data.image_size, say to 224")
    return height, width, channels


def step_settings(config: ml_collections.ConfigDict) -> ml_collections.FrozenConfigDict:
    """All of a config that the compiled steps depend on beside the network."""
    names = ("optimization", "batch_size", "label_smoothing", "ema_decay")
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
        frozen=_frozen(settings.optimization),
    )
    mesh = jax.sharding.Mesh(np.array(devices or jax.devices()), AXIS)
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return Steps(
        # As the steps return it, or the second step would be compiled anew.
        place=functools.partial(jax.device_put, device=replicated),
        # The state has no device axis: every device holds and updates the same one.
        train=jax.pmap(
            train,
            AXIS,
            in_axes=(None, 0, None),
            out_axes=(None, 0),
            devices=devices,
            donate_argnums=(0,),
        ),
        evaluate=jax.pmap(
            functools.partial(eval_step, model=model), AXIS, in_axes=(None, 0), devices=devices
        ),
        optimizer=optimizer,
        schedule=schedule,
    )


def _hparams(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What TensorBoard's HParams tab tells runs apart by: numbers, truth values and strings."""
    names = ("model", "optimization", "duration", "batch_size", "label_smoothing", "seed")
    values = config.to_dict()
    values = {name: values[name] for name in (*names, "weights", "start") if name in values}
    flat = flatten_dict(values, sep=".")
    return {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in flat.items()
    }


def _picture(images: np.ndarray, pixels: data.Pixels) -> np.ndarray:
    """What a network sees, back in [0, 1]."""
    return np.clip(images * np.asarray(pixels.std) + np.asarray(pixels.mean), 0, 1)


def _finished(window: list[metrics.Sums]) -> bool:
    """Whether the devices have done the last step of `window`."""
    return all(x.is_ready() for x in jax.tree.leaves(window[-1:]))


def _stop_if_not_finite(loss: float, step: int, learning_rate: float) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step} (learning rate {learning_rate:.4g}): "
            "lower optimization.learning_rate or lengthen optimization.warmup"
        )
