"""The evaluation loop, for training and for finished weights: every example counts exactly once."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Int

from mnv2 import data
from mnv2.preprocess.host import View
from mnv2.pretrained import Preprocessing, Pretrained
from mnv2.runtime.errors import NotFinite
from mnv2.runtime.processes import process_shard
from mnv2.runtime.terminal import StatusLine
from mnv2.training.progress import Stopwatch, progress
from mnv2.training.step import (
    StepMetrics,
    eval_step,
    first_not_finite,
    number_of,
    parallel,
    shard,
    summarize,
)

# Takes a batch of the host; returns the metrics, and the predicted classes of its rows.
Step = Callable[[data.Batch], tuple[StepMetrics, Array]]


def evaluate(
    step: Step,
    dataset: data.Dataset,
    split: str,
    batch_size: int,
    view: View,
    before_batch: Callable[[Sequence[StepMetrics]], None] = lambda done: None,
    confusion: np.ndarray | None = None,
) -> dict[str, float]:
    """Computes mean loss and accuracies over all examples of `split`, each counted once.

    `view` turns pictures into the network's input. `batch_size` is rounded up to a multiple of the
    devices; a mask covers the rows that the last batch lacks. `before_batch` is called with the
    metrics of the batches so far; what it raises ends the evaluation, but never one that is
    complete. If a `confusion` matrix is given (true
    class, predicted class), the predictions are added to it. Raises UserError if a loss is not
    finite.
    """
    batch_size += -batch_size % number_of()
    window: list[StepMetrics] = []
    for batch in data.eval_batches(dataset, split, batch_size, view=view, shard=process_shard()):
        before_batch(window)
        metrics, predictions = step(batch)
        window.append(metrics)
        if confusion is not None:
            counted = batch["mask"] > 0
            predicted = np.asarray(predictions).reshape(-1)
            np.add.at(confusion, (batch["label"][counted], predicted[counted]), 1)
    if first_not_finite(window) is not None:
        raise NotFinite(
            f"the loss on the {split} split of {dataset.name} is not finite: the weights hold, or "
            "lead to, values that are not finite"
        )
    return summarize(window)


class Evaluation(NamedTuple):
    """Mean loss and accuracies; and how many examples of each class were predicted as which."""

    summary: dict[str, float]
    confusion: Int[np.ndarray, "true predicted"]


@runtime_checkable
class Network(Protocol):
    """What evaluation has to know of a network: weights in JAX, or an exported file."""

    @property
    def preprocess(self) -> Preprocessing: ...

    @property
    def image_size(self) -> tuple[int, int]: ...

    @property
    def channels(self) -> int: ...

    @property
    def class_names(self) -> tuple[str, ...] | None: ...

    @property
    def display_names(self) -> tuple[str, ...]: ...

    def with_class_names(self, names: Sequence[str], source: str) -> Any: ...

    def without_background(self) -> Any: ...


def evaluate_weights(
    loaded: Pretrained, dataset: data.Dataset, split: str, batch_size: int
) -> Evaluation:
    """Evaluates finished weights on every example of `split` once, over all devices."""
    logits = loaded.logits_for_inference()

    def of_device(batch: dict[str, Array]) -> tuple[StepMetrics, Int[Array, " b"]]:
        return eval_step(logits(batch["image"]), batch)

    on_devices = parallel(of_device, out_axes=(None, 0))
    return evaluate_network(
        lambda batch: on_devices(shard(batch)), loaded, dataset, split, batch_size
    )


def evaluate_network(
    step: Step, network: Network, dataset: data.Dataset, split: str, batch_size: int
) -> Evaluation:
    """Evaluates a network on every example of `split` once. `step` is as in `evaluate`."""
    batch_size += -batch_size % number_of()  # what the stopwatch counts
    confusion = np.zeros((len(network.display_names),) * 2, np.int64)
    stopwatch, line = Stopwatch(batch_size), StatusLine("evaluating")
    batches = -(-dataset.num_examples(split) // batch_size)

    def show(done: Sequence[StepMetrics]) -> None:
        loss = summarize(done[-1:]).get("loss")  # waits for the devices
        stopwatch.stop(len(done))
        if len(done) > 1:  # the first batch is compiled
            line.say(str(progress(len(done), batches, loss, stopwatch)))
        if done:
            stopwatch.start(len(done))

    line.say("compiling")
    view = network.preprocess.view_of(network.image_size, network.channels)
    summary = evaluate(step, dataset, split, batch_size, view, show, confusion)
    line.clear()
    return Evaluation(summary, confusion)
