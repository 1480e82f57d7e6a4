"""One run: train a network on a data set, evaluate it, remember the result."""

import contextlib
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import metric_writers
from flax.traverse_util import flatten_dict

from mnv2 import data, pretrained
from mnv2.analysis import complexity
from mnv2.pretrained import native
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import append_line, keep_lines, write_json
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.processes import of_first
from mnv2.runtime.throughput import Progress
from mnv2.training import metrics
from mnv2.training.checkpoint import Checkpoints
from mnv2.training.devices import share, writes
from mnv2.training.setup import Parts, adopt, build, load_backbone, starts_from_weights
from mnv2.training.state import TrainState, create_state
from mnv2.training.steps import Steps

RESULT = "result.json"
METRICS = "metrics.jsonl"


def train_and_evaluate(
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    label: str = "run",
    stopper: Stopper | None = None,
) -> dict[str, Any]:
    """Trains as `config` says, going on from the newest checkpoint in `workdir`.

    Looks at the validation split on the way and at the test split once, at the end. Writes
    TensorBoard's events, metrics.jsonl, checkpoints, and at last result.json, which it returns.
    Raises Stopped, with the last step saved, soon after `stopper` has noted a signal, and UserError
    for a config that does not describe a run, a loss that is not finite, and a full disk.
    """
    try:
        return _train_and_evaluate(config, workdir, label, stopper or Stopper())
    except OSError as error:
        if error.errno is None:
            raise  # of no file: another process is gone, and its connection with it
        raise UserError(
            f"cannot read or write {error.filename or workdir}: {error.strerror}; "
            "the same command goes on from the newest checkpoint"
        ) from error


def _train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: Path, label: str, stopper: Stopper
) -> dict[str, Any]:
    parts = build(config)
    model, shape = parts.model, parts.image_shape
    state = create_state(
        model, parts.on_devices.optimizer, shape, seed=config.seed, ema=config.ema_decay > 0
    )
    if starts_from_weights(config):
        state = adopt(state, load_backbone(config.weights))
    state = parts.on_devices.place(state)
    if writes():
        _write_description(workdir, parts)
    # Closed whatever happens, so that a checkpoint on its way to the disk arrives.
    with (
        contextlib.closing(Checkpoints(workdir / "checkpoints")) as checkpoints,
        contextlib.closing(_writer(workdir)) as writer,
    ):
        state, seconds = checkpoints.restore(state)
        first_step = int(state.step)
        if writes():
            keep_lines(workdir / METRICS, lambda line: json.loads(line)["step"] <= first_step)
        writer.write_hparams(_hparams(config))
        progress = Progress(label, parts.durations[0], config.batch_size, seconds)
        loop = _Loop(config, workdir, parts, checkpoints, writer, progress, stopper, state)
        compiled_in = loop.train()
        test = loop.evaluate("test")
    progress.clear()
    total_steps = parts.durations[0]
    result = {
        "test": test,
        "parameters": complexity.parameters(model, shape),
        "multiply_adds": complexity.multiply_adds(model, shape),
        "steps": total_steps,
        "images_per_second": total_steps * config.batch_size / progress.seconds,
        "train_seconds": progress.seconds,
        "waiting_for_input": progress.waiting,
        "first_step_seconds": compiled_in,  # compilation, where it is not remembered
    }
    if writes():
        write_json(workdir / RESULT, result)
    return result


@dataclasses.dataclass
class _Loop:
    """The steps of one run, and what happens between them."""

    config: ml_collections.ConfigDict
    workdir: Path
    parts: Parts
    checkpoints: Checkpoints
    writer: metric_writers.MetricWriter
    progress: Progress
    stopper: Stopper
    state: TrainState

    def __post_init__(self) -> None:
        self._done = int(self.state.step)  # steps; the state itself may still be under way

    def train(self) -> float:
        """Does the steps that are left; returns the seconds that the first one took."""
        try:
            with self.stopper.deferred():
                return self._train()
        except Stopped as stopped:
            self.progress.clear()
            self.progress.stop(self._done)
            if self._done == 0:
                raise
            self.checkpoints.save(self._done, self.state, self.progress.seconds)
            raise Stopped(
                f"{stopped}; step {self._done} of {self.progress.label} is saved in {self.workdir}"
            ) from None

    def _train(self) -> float:
        total_steps, _, _ = self.parts.durations
        if self._done and self._evaluates():
            if not of_first(_validated(self.workdir / METRICS, self._done)):
                self.evaluate("validation")  # it was stopped in the middle of this
        on_devices = self.parts.on_devices
        key = jax.random.key(self.config.seed)
        window: list[metrics.Sums] = []
        self.progress.say("compiling")
        began, compiled_in = time.perf_counter(), 0.0
        batches = self.progress.watch(self._batches(), idle=lambda: _finished(window))
        for done, batch in zip(range(self._done, total_steps), batches, strict=False):
            first = not compiled_in
            if first:
                pictures = _picture(batch["image"][:8], self.parts.pixels)
                self.writer.write_images(done + 1, {"train/input": pictures})
            step = functools.partial(on_devices.train, self.state, on_devices.shard(batch), key)
            self.state, sums = self.stopper.compile(step) if first else step()
            self._done = done + 1
            window.append(sums)
            if first:
                jax.block_until_ready(self.state)  # compiled: from here on steps are timed
                compiled_in = time.perf_counter() - began
                self.progress.start(self._done)
            self._after_step(window)
            self.stopper.check()
        return compiled_in

    def _after_step(self, window: list[metrics.Sums]) -> None:
        """Reports, saves and validates where the config says so; empties the window it reports."""
        step = self._done
        total_steps, _, checkpoint_every = self.parts.durations
        saves = step == total_steps or (checkpoint_every and step % checkpoint_every == 0)
        if not (saves or self._evaluates() or step % self.config.log_every == 0):
            return
        self._check_finite(window)
        summary, skipped = metrics.summarize(window), metrics.skipped(window)
        window.clear()
        self.progress.stop(step)
        values = {f"train/{name}": summary[name] for name in ("loss", "accuracy")}
        values["train/learning_rate"] = float(self.parts.on_devices.schedule(step - 1))
        if self.config.on_nan == "skip":
            values["train/skipped_steps"] = skipped
        values["train/images_per_second"] = self.progress.images_per_second
        values["train/waiting_for_input"] = self.progress.waiting
        self._report(values)
        self.progress.show(step, summary["loss"])
        if saves:
            self.checkpoints.save(step, self.state, self.progress.seconds)
        if self._evaluates():
            self.evaluate("validation")
        self.progress.start(step)

    def _check_finite(self, window: list[metrics.Sums]) -> None:
        """Raises UserError if a loss is not finite, or if it was so for log_every steps on end."""
        bad = metrics.first_not_finite(window)
        if metrics.skipped(window) >= self.config.log_every:
            bad = 0
        if bad is None:
            return
        step = self._done - len(window) + 1 + bad
        raise UserError(
            f"the loss is not finite {'from' if self.config.on_nan == 'skip' else 'at'} step {step}"
            f" (learning rate {float(self.parts.on_devices.schedule(step - 1)):.4g}): lower "
            "optimization.learning_rate or lengthen optimization.warmup; "
            f"{self.checkpoints.newest()}"
        )

    def evaluate(self, split: str) -> dict[str, float]:
        """Evaluates the state as it is on a split, and reports it."""
        size = self.parts.image_shape[:2]
        summary = evaluate(
            self.parts.on_devices,
            self.state,
            self.parts.dataset,
            split,
            self.config.eval_batch_size,
            functools.partial(data.eval_image, size=size, pixels=self.parts.pixels),
            between=self.stopper.check,
        )
        self._report({f"{split}/{name}": value for name, value in summary.items()})
        self.writer.flush()
        return summary

    def _evaluates(self) -> bool:
        """Whether the validation split is looked at after the last step that was done."""
        total_steps, eval_every, _ = self.parts.durations
        due = self._done == total_steps or (eval_every and self._done % eval_every == 0)
        return bool(due and self.parts.dataset.validation)

    def _report(self, values: dict[str, float]) -> None:
        scalars = {name: x for name, x in values.items() if not name.endswith("/examples")}
        self.writer.write_scalars(self._done, scalars)
        if writes():
            append_line(self.workdir / METRICS, json.dumps({"step": self._done, **values}))

    def _batches(self) -> Iterator[data.Batch]:
        return data.train_batches(
            self.parts.dataset,
            self.config.batch_size,
            seed=self.config.seed,
            first_step=self._done,
            size=self.parts.image_shape[:2],
            augmentation=self.config.data.augmentation,
            pad=self.config.data.pad,
            pixels=self.parts.pixels,
            share=share(),
        )


def evaluate(
    on_devices: Steps,
    state: TrainState,
    dataset: data.Dataset,
    split: str,
    batch_size: int,
    view: Callable[..., Any],
    between: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Loss and accuracies over every example of `split` as `view` shows it, each counted once.

    `batch_size` is rounded up to a multiple of the devices; what a batch lacks is masked.
    `between()` is called after each batch.
    """
    batch_size += -batch_size % jax.device_count()
    window = []
    for batch in data.eval_batches(dataset, split, batch_size, view=view, share=share()):
        window.append(on_devices.evaluate(state, on_devices.shard(batch)))
        between()
    return metrics.summarize(window)


def _write_description(workdir: Path, parts: Parts) -> None:
    """Leaves what others need to use the network: pixels, sizes, names of classes."""
    height, width, channels = parts.image_shape
    seen = pretrained.Preprocessing(mean=parts.pixels.mean, std=parts.pixels.std)
    names = parts.dataset.class_names
    described = native.describe(parts.model, channels, seen, (height, width), names)
    native.write_description(workdir, described)


def _writer(workdir: Path) -> metric_writers.MetricWriter:
    """TensorBoard's events, of the one process that writes them."""
    if not writes():
        return metric_writers.MultiWriter(())
    return metric_writers.SummaryWriter(str(workdir))


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


def _validated(path: Path, step: int) -> bool:
    """Whether metrics.jsonl has the validation of a step."""
    lines = map(json.loads, path.read_text().splitlines())
    return any(line["step"] == step and "validation/loss" in line for line in lines)


def _finished(window: list[metrics.Sums]) -> bool:
    """Whether the devices have done the last step of `window`."""
    return all(x.is_ready() for x in jax.tree.leaves(window[-1:]))
