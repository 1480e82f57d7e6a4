"""One run: train a network on a data set, evaluate it, remember the result."""

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import metric_writers
from flax.traverse_util import flatten_dict

from mnv2 import data, metrics, pretrained
from mnv2.analysis import complexity
from mnv2.build import adopt, build, load_backbone, starts_from_weights
from mnv2.checkpoint import Checkpoints
from mnv2.errors import UserError
from mnv2.files import append_line, keep_lines, write_json
from mnv2.pretrained import native
from mnv2.progress import Progress
from mnv2.state import TrainState, create_state
from mnv2.steps import shard

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
