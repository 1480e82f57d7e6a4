"""How training batches reach the devices: one at a time from the host, or looked up on the devices.

A data set that fits lies in the memory of every device. Then several steps are one call: for a
small network, calling the devices for each step takes longer than the step.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnv2 import data
from mnv2.runtime.processes import broadcast_from_primary, process_shard
from mnv2.training.config import Settings
from mnv2.training.setup import Setup
from mnv2.training.step import AXIS, MOST_STEPS, replicate, shard

CALL_SECONDS = 1.0  # that a call of several steps may take, because a signal waits for it
SHOWN = 8  # pictures of a batch for TensorBoard


class Call(NamedTuple):
    """Some training steps that the devices compute after one call.

    program    `Steps.train` or `Steps.train_many`
    arguments  of the program, after the state
    steps      their number
    """

    program: Callable[..., Any]
    arguments: tuple[Any, ...]
    steps: int


def create_feed(setup: Setup, settings: Settings, first_step: int) -> "HostFeed | DeviceFeed":
    """Returns the feed of a run from `first_step` on. Raises UserError as `train_batches` does."""
    data.check_batch_size(settings.batch_size, setup.dataset)
    on_device = data.fits_on_device(setup.dataset, setup.train_view)
    return (DeviceFeed if on_device else HostFeed)(setup, settings, first_step)


class HostFeed:
    """Each batch is prepared on the host. The next one is copied while the devices compute."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int):
        self._train, self._key = setup.steps.train, jax.random.key(settings.seed)
        self._augment = setup.steps.augment
        self._teacher = replicate(setup.teacher_variables)
        batches = data.train_batches(
            setup.dataset,
            settings.batch_size,
            seed=settings.seed,
            first_step=first_step,
            view=setup.train_view,
            repeats=settings.data.repeats,
            shard=process_shard(),
        )
        self._batches = itertools.islice(batches, setup.durations.total - first_step)
        self._batch: Any = None
        self._on_devices: Any = None

    def images(self) -> np.ndarray:
        """Returns the first images of the next step, augmented."""
        self.prepare()
        first = {name: values[:SHOWN] for name, values in self._batch.items()}
        return np.asarray(self._augment(first, self._key)[0])

    def prepare(self) -> None:
        """Fetches the next batch, if there is one, and begins to copy it to the devices."""
        if self._batch is None:
            self._batch = next(self._batches, None)
            if self._batch is not None:
                self._on_devices = _put(shard(self._batch))

    def next(self, most: int, rate: float) -> Call:
        """Returns the next step."""
        self.prepare()
        batch, self._batch = self._on_devices, None
        return Call(self._train, (batch, self._key, self._teacher), 1)


def _put(batch: Any) -> Any:
    """Begins to copy a batch, split over this process's devices, to them.

    With several processes `jax.pmap` does it, which makes one array of the parts of all.
    """
    if jax.process_count() > 1:
        return batch
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


class DeviceFeed:
    """The images lie on the devices. A call has the numbers of the rows of several batches."""

    def __init__(self, setup: Setup, settings: Settings, first_step: int):
        self._train, self._key = setup.steps.train_many, jax.random.key(settings.seed)
        self._augment = setup.steps.augment
        self._teacher = replicate(setup.teacher_variables)
        images, labels = setup.dataset.arrays("train")
        data.check_labels(setup.dataset, "train", labels)
        self._images = replicate(images)
        self._labels = replicate(labels.astype(np.int32))
        self._before, self._asked = 0, time.perf_counter()  # of the last call
        examples, repeats = setup.dataset.num_examples("train"), settings.data.repeats
        order = data.Order(examples, settings.batch_size, settings.seed, repeats, process_shard())
        self._first = order.rows_at(first_step)
        self._rows = map(order.rows_at, itertools.count(first_step))

    def images(self) -> np.ndarray:
        """Returns the first images of the first step, augmented."""
        rows: Any = self._first
        first = {name: values[:SHOWN] for name, values in rows.items()}
        for name, of_set in (("image", self._images), ("label", self._labels)):
            first[name] = np.asarray(of_set[first["index"]])
        return np.asarray(self._augment(first, self._key)[0])

    def prepare(self) -> None:
        """Does nothing: there are only numbers to copy."""

    def next(self, most: int, rate: float) -> Call:
        """Returns the next steps, at most `most` and as many as take a second.

        `rate` is in steps per second, 0 if it is not known.
        """
        took = time.perf_counter() - self._asked  # as long as a call: two are on their way
        self._asked += took
        grown = min(2 * self._before, int(CALL_SECONDS * self._before / took))
        possible = int(CALL_SECONDS * rate) if rate else grown
        # The rate differs between processes.
        count = broadcast_from_primary(max(1, min(most, MOST_STEPS, possible)))
        self._before = count
        rows = stack([next(self._rows) for _ in range(count)])
        arguments = (self._images, self._labels, rows, count, self._key, self._teacher)
        return Call(self._train, arguments, count)


def stack(rows: list[data.Rows]) -> data.Rows:
    """Stacks the rows of several steps to (devices, MOST_STEPS, rows of a device)."""
    sharded = [shard(of_step) for of_step in rows]
    sharded += [sharded[0]] * (MOST_STEPS - len(rows))  # never looked at
    return jax.tree.map(lambda *every: np.stack(every, axis=1), *sharded)
