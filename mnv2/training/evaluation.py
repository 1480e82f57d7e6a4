"""The evaluation loop, for training and for finished weights: every example counts exactly once."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mnv2 import data
from mnv2.pretrained import Preprocessing, Pretrained
from mnv2.runtime.errors import NotFinite
from mnv2.runtime.processes import process_shard
from mnv2.runtime.terminal import StatusLine
from mnv2.runtime.throughput import Stopwatch
from mnv2.training import metrics
from mnv2.training.devices import AXIS, Devices, number_of, shard
from mnv2.training.progress import progress
from mnv2.training.state import TrainState

Step = Callable[[data.Batch], tuple[metrics.Sums, Array]]


def eval_step(
    logits: Float[Array, "b classes"], batch: dict[str, Array]
) -> tuple[metrics.Sums, Int[Array, " b"]]:
    """Computes, within pmap, the sums over all devices and this device's predicted classes."""
    losses = metrics.cross_entropy(logits, batch["label"])
    counts = metrics.count(logits, batch["label"], losses, batch["mask"])
    return jax.lax.psum(counts, AXIS), jnp.argmax(logits, axis=-1)


def eval_state(
    state: TrainState, batch: dict[str, Array], *, model: nn.Module, preprocess: Preprocessing
) -> tuple[metrics.Sums, Int[Array, " b"]]:
    """Evaluates a state on one batch: see `eval_step`."""
    logits: Any = model.apply(state.variables(), preprocess(batch["image"]), train=False)
    return eval_step(logits, batch)


def statistics_of(
    state: TrainState,
    batch: dict[str, Array],
    key: Array,
    *,
    model: nn.Module,
    preprocess: Preprocessing,
) -> Any:
    """Returns batch norm's statistics of one batch, for the parameters that evaluation uses."""
    of_one_batch = model.clone(bn_momentum=0.0)
    _, changed = of_one_batch.apply(
        state.variables(),
        preprocess(batch["image"]),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    return jax.lax.pmean(changed["batch_stats"], AXIS)  # groups of devices have different ones


def evaluate(
    step: Step,
    dataset: data.Dataset,
    split: str,
    batch_size: int,
    view: Callable[..., Any],
    before_batch: Callable[[Sequence[metrics.Sums]], None] = lambda done: None,
    confusion: np.ndarray | None = None,
    devices: Devices = None,
) -> dict[str, float]:
    """Computes mean loss and accuracies over all examples of `split`, each counted once.

    `step` takes a batch that is split over `devices`, and `view` turns pictures into the network's
    input. `batch_size` is rounded up to a multiple of the devices; a mask covers the rows that the
    last batch lacks. `before_batch` is called with the sums of the batches so far; what it raises
    ends the evaluation, but never one that is complete. If a `confusion` matrix is given (true
    class, predicted class), the predictions are added to it. Raises UserError if a loss is not
    finite.
    """
    batch_size += -batch_size % number_of(devices)
    window: list[metrics.Sums] = []
    for batch in data.eval_batches(
        dataset, split, batch_size, transform=view, shard=process_shard()
    ):
        before_batch(window)
        sums, predictions = step(shard(batch, devices))
        window.append(sums)
        if confusion is not None:
            counted = batch["mask"] > 0
            predicted = np.asarray(predictions).reshape(-1)
            np.add.at(confusion, (batch["label"][counted], predicted[counted]), 1)
    if metrics.first_not_finite(window) is not None:
        raise NotFinite(
            f"the loss on the {split} split of {dataset.name} is not finite: the weights hold, or "
            "lead to, values that are not finite"
        )
    return metrics.summarize(window)


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

    def step(batch: dict[str, Array]) -> tuple[metrics.Sums, Int[Array, " b"]]:
        return eval_step(logits(batch["image"]), batch)

    evaluate_step = jax.pmap(step, AXIS, out_axes=(None, 0))
    return evaluate_network(evaluate_step, loaded, dataset, split, batch_size)


def evaluate_network(
    step: Step, network: Network, dataset: data.Dataset, split: str, batch_size: int
) -> Evaluation:
    """Evaluates a network on every example of `split` once. `step` is as in `evaluate`."""
    batch_size += -batch_size % number_of()  # what the stopwatch counts
    confusion = np.zeros((len(network.display_names),) * 2, np.int64)
    stopwatch, line = Stopwatch(batch_size), StatusLine("evaluating")
    batches = -(-dataset.num_examples(split) // batch_size)

    def show(done: Sequence[metrics.Sums]) -> None:
        loss = metrics.summarize(done[-1:])["loss"]  # waits for the devices
        stopwatch.stop(len(done))
        if len(done) > 1:  # the first batch is compiled
            line.say(str(progress(len(done), batches, loss, stopwatch)))
        if done:
            stopwatch.start(len(done))

    line.say("compiling")
    view = view_of(network.preprocess, network.image_size, network.channels)
    summary = evaluate(step, dataset, split, batch_size, view, show, confusion)
    line.clear()
    return Evaluation(summary, confusion)


def view_of(
    preprocess: Preprocessing, image_size: tuple[int, int], channels: int
) -> Callable[[Any], Any]:
    """Returns the function from pictures to images in [0, 255] of a network's size and channels."""

    return functools.partial(
        data.eval_view,
        size=image_size,
        channels=channels,
        method=preprocess.method,
        crop=preprocess.crop,
        first=preprocess.first,
    )
