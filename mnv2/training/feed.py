"""How training batches reach the devices: one at a time from the host, or looked up on the devices.

A data set that fits lies in the memory of every device. Then several steps are one dispatch: for a
small network, calling the devices for each step takes longer than the step.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from mnv2 import data
from mnv2.runtime.processes import number_of_first, process_shard
from mnv2.training.look_up import look_up
from mnv2.training.metrics import Sums
from mnv2.training.settings import Settings
from mnv2.training.setup import Setup
from mnv2.training.state import TrainState
from mnv2.training.steps import MOST_STEPS

SECONDS = 1.0  # that a dispatch may take, because a signal waits for it


class Dispatch(NamedTuple):
    """Some training steps that the devices compute after one call.

    steps   their number
    update  computes them; the sums have an axis of steps, or none if there is one step
    images  returns the images of the first rows of its first batch
    """

    steps: int
    update: Callable[[TrainState], tuple[TrainState, Sums]]
    images: Callable[[], np.ndarray]


def feed(setup: Setup, settings: Settings, first_step: int, key: Array) -> "FromHost | FromDevice":
    """Returns the feed of a run from `first_step` on. Raises UserError as `train_batches` does."""
    data.check_batch_size(settings.batch_size, setup.dataset)
    size, channels = setup.image_shape[:2], setup.image_shape[2]
    if data.fits_on_device(setup.dataset, size, channels, settings.data.augmentation):
        return FromDevice(setup, settings, first_step, key)
    return FromHost(setup, settings, first_step, key)


class FromHost:
    """Each batch is prepared on the host, and is a dispatch."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int, key: Array):
        self._steps, self._key = setup.steps, key
        self._batches: Iterator[data.Batch] = data.train_batches(
            setup.dataset,
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            size=setup.image_shape[:2],
            augmentation=settings.data.augmentation,
            pad=settings.data.pad,
            channels=setup.image_shape[2],
            shard=process_shard(),
        )

    def next(self, most: int, rate: float) -> Dispatch:
        """Returns the next step."""
        batch = next(self._batches)
        return Dispatch(
            1,
            lambda state: self._steps.train(state, self._steps.shard(batch), self._key),
            lambda: batch["image"][:8],
        )


class FromDevice:
    """The images lie on the devices. A dispatch has the numbers of the rows of several batches."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int, key: Array):
        self._steps, self._key, self._pad = setup.steps, key, settings.data.pad
        images, labels = setup.dataset.arrays("train")
        data.check_labels(setup.dataset, "train", labels.numpy())
        self._images = self._steps.place(images.numpy())
        self._labels = self._steps.place(labels.numpy().astype(np.int32))
        self._before = 0  # the number of steps of the last dispatch
        self._rows = data.train_rows(
            len(labels),
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            augmentation=settings.data.augmentation,
            pad=self._pad,
            shard=process_shard(),
        )

    def next(self, most: int, rate: float) -> Dispatch:
        """Returns the next steps, at most `most`; `rate` is in steps per second, 0 if unknown."""
        possible = int(SECONDS * rate) if rate else 2 * self._before
        wanted = max(1, min(most, MOST_STEPS, possible))
        count = number_of_first(wanted)  # the rate differs between processes
        self._before = count
        rows = [next(self._rows) for _ in range(count)]
        return Dispatch(count, lambda state: self._update(state, rows), lambda: self._look(rows[0]))

    def _update(self, state: TrainState, rows: list[data.Rows]) -> tuple[TrainState, Sums]:
        return self._steps.train_many(
            state, self._images, self._labels, stack(rows, self._steps.shard), len(rows), self._key
        )

    def _look(self, rows: data.Rows) -> np.ndarray:
        first = {name: values[:8] for name, values in rows.items()}
        return np.asarray(look_up(self._images, first, self._pad))


def stack(rows: list[data.Rows], shard: Callable[[Any], Any]) -> data.Rows:
    """Stacks the rows of several steps to (devices, MOST_STEPS, rows of a device)."""
    sharded = [shard(one) for one in rows]
    sharded += [sharded[0]] * (MOST_STEPS - len(rows))  # never looked at
    return {name: np.stack([one[name] for one in sharded], axis=1) for name in sharded[0]}
