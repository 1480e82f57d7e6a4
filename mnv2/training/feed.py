"""How training batches reach the devices: one at a time from the host, or looked up on the devices.

A data set that fits lies in the memory of every device. Then several steps are one dispatch: for a
small network, calling the devices for each step takes longer than the step.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
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
from mnv2.training.together import Member

SECONDS = 1.0  # that a dispatch may take, because a signal waits for it


class Dispatch(NamedTuple):
    """Some training steps that the devices compute after one call.

    steps   their number
    update  computes them; the sums have an axis of steps, or none if there is one step
    images  returns the images of the first rows of its first batch
    shape   of the images, for which the step is compiled
    """

    steps: int
    update: Callable[[TrainState], tuple[TrainState, Sums]]
    images: Callable[[], np.ndarray]
    shape: tuple[int, ...] = ()


def feed(
    setup: Setup, settings: Settings, first_step: int, key: Array, member: Member | None = None
) -> "FromHost | FromDevice | Together":
    """Returns the feed of a run from `first_step` on. Raises UserError as `train_batches` does.

    `member` is the run's place among runs that compute together, which needs data that `fits`.
    """
    data.check_batch_size(settings.batch_size, setup.dataset)
    if member is not None:
        return Together(setup, settings, first_step, key, member)
    if fits(setup, settings):
        return FromDevice(setup, settings, first_step, key)
    return FromHost(setup, settings, first_step, key)


def fits(setup: Setup, settings: Settings) -> bool:
    """Tells whether the training set of a run lies on the devices."""
    return not settings.data.progressive and data.fits_on_device(setup.dataset, setup.view)


class FromHost:
    """Each batch is prepared on the host, and is a dispatch."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int, key: Array):
        self._steps, self._key = setup.steps, key
        self._taught = setup.steps.place(setup.taught)
        self._batches = _batches(setup, settings, first_step)

    def count(self, most: int, rate: float) -> int:
        """Returns the number of steps of the next dispatch: one."""
        return 1

    def next(self, count: int) -> Dispatch:
        """Returns the next step."""
        batch = next(self._batches)
        return Dispatch(
            1,
            lambda state: self._steps.train(
                state, self._steps.shard(batch), self._key, self._taught
            ),
            lambda: batch["image"][:8],
            batch["image"].shape,
        )


def _batches(setup: Setup, settings: Settings, first_step: int) -> Iterator[data.Batch]:
    """Yields the batches of a run from `first_step` on; each part of the run has its size."""
    parts = setup.views(settings)
    for number, view in enumerate(parts, start=1):
        stop = setup.durations.total * number // len(parts)
        if first_step >= stop:
            continue
        batches = data.train_batches(
            setup.dataset,
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            view=view,
            repeats=settings.data.repeats,
            shard=process_shard(),
        )
        yield from itertools.islice(batches, stop - first_step)
        first_step = stop


class FromDevice:
    """The images lie on the devices. A dispatch has the numbers of the rows of several batches."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int, key: Array):
        self._steps, self._key, self._pad = setup.steps, key, settings.data.pad
        self._images, self._labels, self._taught = self._place(setup)
        self._before, self._asked = 0, time.perf_counter()  # of the last dispatch
        self._rows = data.train_rows(
            setup.dataset.num_examples("train"),
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            augmentation=settings.data.augmentation,
            pad=self._pad,
            repeats=settings.data.repeats,
            shard=process_shard(),
        )

    def _place(self, setup: Setup) -> tuple[Array, Array, Any]:
        images, labels = setup.dataset.arrays("train")
        data.check_labels(setup.dataset, "train", labels.numpy())
        data.note_untrained(setup.dataset, labels.numpy())
        place = self._steps.place
        return place(images.numpy()), place(labels.numpy().astype(np.int32)), place(setup.taught)

    def count(self, most: int, rate: float) -> int:
        """Returns the number of steps of the next dispatch, at most `most`.

        `rate` is in steps per second, 0 if it is not known.
        """
        took = time.perf_counter() - self._asked  # as long as a dispatch: two are on their way
        self._asked += took
        grown = min(2 * self._before, int(SECONDS * self._before / took))
        possible = int(SECONDS * rate) if rate else grown
        wanted = max(1, min(most, MOST_STEPS, possible))
        return number_of_first(wanted)  # the rate differs between processes

    def next(self, count: int) -> Dispatch:
        """Returns the next `count` steps."""
        self._before = count
        rows = [next(self._rows) for _ in range(count)]
        return Dispatch(count, lambda state: self._update(state, rows), lambda: self._look(rows[0]))

    def _update(self, state: TrainState, rows: list[data.Rows]) -> tuple[TrainState, Sums]:
        stacked = stack(rows, self._steps.shard)
        return self._steps.train_many(
            state, self._images, self._labels, stacked, len(rows), self._key, self._taught
        )

    def _look(self, rows: data.Rows) -> np.ndarray:
        first = {name: values[:8] for name, values in rows.items()}
        return np.asarray(look_up(self._images, first, self._pad))


class Together(FromDevice):
    """As `FromDevice`, in step with the other members of a group: see `training.together`."""

    def __init__(
        self, setup: Setup, settings: Settings, first_step: int, key: Array, member: Member
    ):
        self._member, self._rate = member, np.float32(settings.optimization.learning_rate)
        super().__init__(setup, settings, first_step, key)

    def _place(self, setup: Setup) -> tuple[Array, Array, Any]:
        return self._member.share("data", lambda: super(Together, self)._place(setup))

    def count(self, most: int, rate: float) -> int:
        """Returns the number of steps of the next dispatch, for all members; 0 after a signal."""
        return self._member.agree(super().count(most, rate))

    def _update(self, state: TrainState, rows: list[data.Rows]) -> tuple[TrainState, Sums]:
        # All members call the program of one, so that it is compiled once.
        program = self._member.share("program", lambda: self._steps.train_together)
        part = (state, stack(rows, self._steps.shard), self._key, self._rate)

        def together(parts: list[Any]) -> Sequence[tuple[TrainState, Sums]]:
            states, stacked, keys, rates = zip(*parts, strict=True)
            return program(
                states, self._images, self._labels, stacked, len(rows), keys, rates, self._taught
            )

        return self._member.compute(part, together)


def stack(rows: list[data.Rows], shard: Callable[[Any], Any]) -> data.Rows:
    """Stacks the rows of several steps to (devices, MOST_STEPS, rows of a device)."""
    sharded = [shard(one) for one in rows]
    sharded += [sharded[0]] * (MOST_STEPS - len(rows))  # never looked at
    return {name: np.stack([one[name] for one in sharded], axis=1) for name in sharded[0]}
