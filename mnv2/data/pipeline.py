"""Deterministic batches.

The order of an epoch and what augmentation does depend only on (seed, epoch, position in the
epoch). A run that was stopped and is resumed therefore sees the same batches as one that was not
stopped.

If there are several processes, each reads its shard of every batch, (index, number of shards).
Together the shards are the batches that a single process would read. For a data set of which the
files are read in parts this holds while the number of processes divides `number_of_parts`.
"""

import atexit
import functools
import itertools
import math
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypedDict

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from mnv2.data.base import Dataset
from mnv2.data.splits import bounds_of
from mnv2.preprocess.host import View
from mnv2.runtime.errors import UserError

# A data set on disk is read in this many parts, each in its own order. It bounds the number of
# processes that read the same batches as one. A part reads up to two files at a time.
PARTS = 16
MOST_BYTES = 1 << 30  # of images, in the memory of each device


class Rows(TypedDict, total=False):
    """The rows of a training batch, each an int32 vector (b): from them the devices augment.

    index     of the example in the data set
    epoch     from 0
    position  in the epoch, of all shards
    """

    index: np.ndarray
    epoch: np.ndarray
    position: np.ndarray


class Batch(Rows, total=False):
    """A batch of examples; those for training have the fields of `Rows`, others have a mask.

    image  b h w c in [0, 255]: uint8, or float32 with views of evaluation that do not round
    label  int32 b
    mask   float32 b, 0 for padding
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def check_batch_size(batch_size: int, dataset: Dataset) -> None:
    """Raises UserError if a batch is larger than the training set."""
    if batch_size > (count := dataset.num_examples("train")):
        raise UserError(
            f"batch_size {batch_size} is larger than the {count} training examples of "
            f"{dataset.name}"
        )


class Order(NamedTuple):
    """What decides the order of a run's training examples, and which of them a shard reads.

    `examples` is their number in the training set.
    """

    examples: int
    batch_size: int
    seed: int
    repeats: int = 1
    shard: tuple[int, int] = (0, 1)

    @property
    def rows(self) -> int:
        """The rows of each batch that this shard reads."""
        return self.batch_size // self.shard[1]

    @property
    def steps(self) -> int:
        return self.examples // self.batch_size

    def rows_at(self, step: int) -> Rows:
        """Returns this shard's rows of the batch of a step, counted from the run's beginning.

        Only for a data set of which any example can be read at any time.
        """
        epoch, step = divmod(step, self.steps)
        numbers = _numbers(self, epoch)[step]
        first = step * self.batch_size + self.shard[0] * self.rows
        position = first + np.arange(self.rows, dtype=np.int32)
        return {"index": numbers, "epoch": np.full_like(numbers, epoch), "position": position}

    @property
    def own_parts(self) -> range:
        """The parts of the data set that this shard reads."""
        index, shards = self.shard
        count = number_of_parts(self.batch_size, shards)
        return range(index * count // shards, (index + 1) * count // shards)

    def parts_read(self, number: int, epoch: int) -> list[tuple[int, int]]:
        """Returns what an epoch reads of a part, as (index, number of parts): all, or two shares.

        With repeats each epoch reads another share, because examples of one file are shuffled only
        nearby: the first ones would come in every epoch, and the last ones never. The second share
        completes the batches if the first one is too small by an example.
        """
        count, repeats = number_of_parts(self.batch_size, self.shard[1]), self.repeats
        if repeats == 1 or self.examples < 2 * count * repeats:
            return [(number, count)]
        shares = ((epoch + later) % repeats for later in (0, 1))
        return [(number * repeats + share, count * repeats) for share in shares]


@functools.lru_cache(maxsize=1)
def _numbers(order: Order, epoch: int) -> Int[np.ndarray, "steps rows"]:
    """Returns the number of the example in each row that this shard reads in an epoch."""
    shuffled = np.random.default_rng((order.seed, epoch)).permutation(order.examples)
    every = shuffled[np.arange(order.steps * order.batch_size) // order.repeats].astype(np.int32)
    return every.reshape(order.steps, order.shard[1], order.rows)[:, order.shard[0]]


def fits_on_device(dataset: Dataset, view: View) -> bool:
    """Tells whether the devices can hold a training set, of which the host changes nothing."""
    if not (dataset.fits_in_memory() and view.keeps(dataset.image_shape)):
        return False
    return dataset.num_examples("train") * math.prod(view.shape) <= MOST_BYTES


def train_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    view: View,
    first_step: int = 0,
    repeats: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields this shard's rows of the training batches from `first_step` on, without end.

    An epoch has every training example once, in a new order, except for the last partial batch.
    With `repeats` (repeated augmentation, arXiv 1901.09335) it has as many rows, and each example
    as often in a row, augmented anew: an epoch then has a part of the examples. `batch_size` counts
    the rows of all shards. `view` is what the host does to each picture; its random choices depend
    on (seed, epoch, position).

    Raises UserError if a batch is larger than the training set, or if an example cannot
    be read or has no class.
    """
    check_batch_size(batch_size, dataset)
    order = Order(dataset.num_examples("train"), batch_size, seed, repeats, shard)
    if (table := dataset.table("train")) is not None:
        # One endless pipeline: to build one takes seconds, and memory that is not given back.
        yield from _to_numpy(dataset, "train", _by_number(dataset, table, order, view, first_step))
        return
    first_epoch, first_step = divmod(first_step, order.steps)
    for epoch in itertools.count(first_epoch):
        step = first_step if epoch == first_epoch else 0
        yield from _to_numpy(dataset, "train", _epoch_from_disk(dataset, order, view, epoch, step))


def eval_batches(
    dataset: Dataset, split: str, batch_size: int, *, view: View, shard: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """Yields this shard's rows of batches that contain every example of `split` exactly once.

    Each shard reads its own part of the split, in order. All shards have the same number of
    batches: what a shard lacks is padded with rows of mask 0.

    Raises UserError if there is no such split, or if an example cannot be read or has no class.
    """
    rows, count = batch_size // shard[1], dataset.num_examples(split)
    if count == 0:
        raise UserError(f"the split {split} of {dataset.name} has no examples that can be read")
    start, stop = bounds_of(shard, count)
    most = -(-count // shard[1])  # of a shard
    padding = -(-most // rows) * rows - (stop - start)
    mask = np.concatenate([np.ones(stop - start, np.float32), np.zeros(padding, np.float32)])
    if dataset.fits_in_memory():
        images, labels = dataset.arrays(split)
        for begin in range(0, len(mask), rows):
            of_batch = mask[begin : begin + rows]
            taken = np.where(of_batch > 0, start + begin + np.arange(rows), 0)
            check_labels(dataset, split, labels[taken])
            image = images[taken]
            if not view.keeps(images.shape[1:]):
                image = np.stack([view(picture) for picture in image])
            yield {"image": image, "label": labels[taken].astype(np.int32), "mask": of_batch}
        return
    unused = dataset.encoded(split).take(1).cache().repeat(padding)
    examples = dataset.encoded(split, part=shard).concatenate(unused)

    def decode(example: dict[str, tf.Tensor], mask: tf.Tensor) -> dict[str, tf.Tensor]:
        return _to_batch(dataset.decode(example, view), example["label"], {"mask": mask})

    masks = tf.data.Dataset.from_tensor_slices(mask)
    batches = tf.data.Dataset.zip(examples, masks).map(decode, tf.data.AUTOTUNE).batch(rows)
    yield from _to_numpy(dataset, split, batches)


def _by_number(
    dataset: Dataset, table: Mapping[str, tf.Tensor], order: Order, view: View, first_step: int
) -> tf.data.Dataset:
    """Returns all batches from a step on, of the examples in the table of a data set."""

    def rows_at(step: np.int64) -> list[np.ndarray]:
        rows = order.rows_at(int(step))
        return [rows["index"], rows["epoch"], rows["position"]]

    def choose(step: tf.Tensor) -> dict[str, tf.Tensor]:
        names = Rows.__annotations__
        rows = tf.numpy_function(rows_at, (step,), [tf.int32] * len(names))
        return {
            name: tf.ensure_shape(row, (order.rows,)) for name, row in zip(names, rows, strict=True)
        }

    # Dataset.from_generator would do, but TensorFlow then sets glibc's M_MMAP_THRESHOLD to 128 KiB,
    # for the whole process: each larger array, of a training step too, gets fresh pages.
    chosen = tf.data.Dataset.range(first_step, tf.int64.max).map(choose)

    def show(rows: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        taken = {name: tf.gather(values, rows["index"]) for name, values in table.items()}
        seed = (order.seed, rows["epoch"], rows["position"])
        return _to_batch(dataset.decode(taken, view, *seed), taken["label"], rows)

    if dataset.fits_in_memory() and view.keeps(dataset.image_shape):
        return chosen.map(show, tf.data.AUTOTUNE)
    return chosen.unbatch().map(show, tf.data.AUTOTUNE).batch(order.rows, drop_remainder=True)


def _epoch_from_disk(
    dataset: Dataset, order: Order, view: View, epoch: int, first_step: int
) -> tf.data.Dataset:
    """Returns the batches of one epoch from its step `first_step` on.

    The rows of a batch come from as many parts of the data set, a few rows from each. A process
    reads only the parts of its own rows. The order of the examples depends on the number of parts.
    """
    rows, own_parts = order.rows, order.own_parts
    each = rows // len(own_parts)
    # Examples before `first_step` are only read, and never decoded.
    parts = [
        _part_of_epoch(dataset, order, number, epoch).skip(first_step * each)
        for number in own_parts
    ]
    numbers = tf.data.Dataset.range(first_step * rows, order.steps * rows)
    examples = tf.data.Dataset.choose_from_datasets(
        parts, numbers.map(lambda n: n % rows // each), stop_on_empty_dataset=False
    )

    def show(number: tf.Tensor, encoded: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        step, row = number // rows, number % rows
        position = tf.cast(step * order.batch_size + order.shard[0] * rows + row, tf.int32)
        image = dataset.decode(encoded, view, order.seed, epoch, position)
        fields = {"index": encoded["index"], "epoch": tf.constant(epoch), "position": position}
        return _to_batch(image, encoded["label"], fields)

    shown = tf.data.Dataset.zip(numbers, examples).map(show, tf.data.AUTOTUNE)
    return shown.batch(rows, drop_remainder=True)


def _part_of_epoch(dataset: Dataset, order: Order, number: int, epoch: int) -> tf.data.Dataset:
    """Returns the examples that an epoch reads of a part, each as often as it comes in a row."""
    seed = _epoch_seed(order.seed, epoch)
    read = (dataset.encoded("train", seed, part) for part in order.parts_read(number, epoch))
    examples = functools.reduce(tf.data.Dataset.concatenate, read)
    if order.repeats == 1:
        return examples
    return examples.flat_map(lambda x: tf.data.Dataset.from_tensors(x).repeat(order.repeats))


def number_of_parts(batch_size: int, processes: int) -> int:
    """Returns into how many parts a data set on disk is divided, so that each process has some.

    The largest power of 2 that divides the batch, up to PARTS, whatever the number of processes
    that divides it; otherwise one part per process.
    """
    parts = math.gcd(batch_size, PARTS)
    return parts if parts % processes == 0 else processes


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng((seed, epoch)).integers(2**31))


def _to_batch(
    images: tf.Tensor, labels: tf.Tensor, rows: dict[str, tf.Tensor]
) -> dict[str, tf.Tensor]:
    return {"image": images, "label": tf.cast(labels, tf.int32), **rows}


def _to_numpy(dataset: Dataset, split: str, batches: tf.data.Dataset) -> Iterator[Batch]:
    """Yields batches as NumPy arrays.

    Raises UserError if TensorFlow fails to read one, or if a label is none of the classes.
    """
    failed = tf.errors.OpError  # a name that still exists while the interpreter ends
    try:
        for batch in _until_exit(batches.prefetch(tf.data.AUTOTUNE)):
            check_labels(dataset, split, batch["label"])
            yield batch
    except failed as error:
        raise UserError(dataset.explain(error)) from error


_READING: weakref.WeakSet[Any] = weakref.WeakSet()  # generators that are not at their end


def _until_exit(batches: tf.data.Dataset) -> Iterator[Any]:
    """Returns the batches as NumPy arrays; they are closed before the interpreter ends.

    A thread of TensorFlow that calls Python while the interpreter ends would wait for ever.
    """
    every = (batch for batch in batches.as_numpy_iterator())
    _READING.add(every)
    return every


@atexit.register
def _close_all() -> None:
    for every in list(_READING):
        every.close()


def check_labels(dataset: Dataset, split: str, labels: np.ndarray) -> None:
    """Raises UserError if a label is none of the classes of a data set."""
    outside = labels[(labels < 0) | (labels >= dataset.num_classes)]
    if len(outside):
        unlabelled = "; -1 means that it is not labelled" if outside[0] == -1 else ""
        raise UserError(
            f"the split {split} of {dataset.name} has the label {outside[0]}, but the labels of "
            f"its {dataset.num_classes} classes are 0 to {dataset.num_classes - 1}{unlabelled}"
        )
