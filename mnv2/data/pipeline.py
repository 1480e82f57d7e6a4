"""Deterministic batches.

The order of an epoch and every augmentation depend only on (seed, epoch, position in the epoch). A
run that was stopped and is resumed therefore sees the same batches as one that was not stopped.

If there are several processes, each reads its shard of every batch, (index, number of shards).
Together the shards are the batches that a single process would read. For a data set on disk this
holds while the number of processes divides `number_of_parts`.
"""

import collections
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from mnv2.data.datasets import Dataset
from mnv2.data.preprocess import View, train_image
from mnv2.data.splits import bounds_of, shuffled
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note_once

# A data set on disk is read in this many parts, each in its own order. It bounds the number of
# processes that read the same batches as one. A part reads up to two files at a time.
PARTS = 16

Numbers = collections.deque[np.ndarray]  # of the examples in each of some batches
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (images, seeds) -> images


class Batch(TypedDict, total=False):
    """A batch of examples; only batches for evaluation have a mask.

    image  b h w c in [0, 255]: uint8, or float32 with views of evaluation that do not round
    label  int32 b
    mask   float32 b, 0 for padding
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def check_batch_size(batch_size: int, dataset: Dataset) -> None:
    """Raises UserError if a batch is larger than the training set."""
    if batch_size > (examples := dataset.num_examples("train")):
        raise UserError(
            f"batch_size {batch_size} is larger than the {examples} training examples of "
            f"{dataset.name}"
        )


def train_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    view: View | Augment,
    repeats: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields this shard's rows of the training batches from `first_step` on, without end.

    An epoch has every training example once, in a new order, except for the last partial batch.
    With `repeats` (repeated augmentation, arXiv 1901.09335) it has as many rows, and each example
    as often in a row, augmented anew: an epoch then has a part of the examples. `batch_size` counts
    the rows of all shards. `view` says, or makes, what training sees of each image.

    Raises UserError if a batch is larger than the training set, or if an example cannot
    be read or has no class.
    """
    check_batch_size(batch_size, dataset)
    steps_per_epoch = dataset.num_examples("train") // batch_size
    augment = functools.partial(train_image, view=view) if isinstance(view, View) else view
    epochs = _Epochs(dataset, batch_size, seed, repeats, shard)
    epoch, step = divmod(first_step, steps_per_epoch)
    if dataset.fits_in_memory() or dataset.table("train") is not None:
        # One endless pipeline: to build one takes seconds, and memory that is not given back.
        numbers: Numbers = collections.deque()
        batches = _by_number(epochs, augment, epoch, step, numbers)
        yield from _to_numpy(dataset, "train", batches.prefetch(tf.data.AUTOTUNE), numbers)
        return
    while True:
        batches = _epoch_from_disk(epochs, augment, epoch, step)
        yield from _to_numpy(dataset, "train", batches.prefetch(tf.data.AUTOTUNE))
        epoch, step = epoch + 1, 0


def eval_batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    transform: Callable[[tf.Tensor], tf.Tensor],
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields this shard's rows of batches that contain every example of `split` exactly once.

    All shards have the same number of batches. The last batch is padded with rows of mask 0.
    `transform` maps images (... h w c, uint8) to the input of the network, as
    `evaluation.eval_view` does.

    Raises UserError if there is no such split, or if an example cannot be read or has no class.
    """
    rows = batch_size // shard[1]
    if dataset.num_examples(split) == 0:
        raise UserError(f"the split {split} of {dataset.name} has no examples that can be read")
    in_memory = dataset.fits_in_memory()
    if in_memory:
        images, labels = dataset.arrays(split)
        encoded = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
    else:
        encoded = dataset.encoded(split)
    missing = -dataset.num_examples(split) % batch_size
    padding = encoded.take(1).cache().repeat(missing)
    ones, zeros = (tf.data.Dataset.from_tensors(mask).repeat() for mask in (1.0, 0.0))
    examples = tf.data.Dataset.zip(encoded, ones).concatenate(tf.data.Dataset.zip(padding, zeros))
    examples = _rows_of_shard(examples.enumerate(), batch_size, shard)

    def decode(_: tf.Tensor, row: tuple[dict[str, tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, ...]:
        example, mask = row
        image = transform(dataset.decode(example))
        return image, example["label"], mask

    if in_memory:
        batches = examples.batch(rows).map(
            lambda _, row: (transform(row[0]["image"]), row[0]["label"], row[1])
        )
    else:
        batches = examples.map(decode, tf.data.AUTOTUNE).batch(rows)
    named = batches.map(lambda image, label, mask: {**_to_batch(image, label), "mask": mask})
    numbers = np.arange(dataset.num_examples(split))
    read = collections.deque(np.split(numbers, range(batch_size, len(numbers), batch_size)))
    yield from _to_numpy(dataset, split, named.prefetch(tf.data.AUTOTUNE), read)


class _Epochs(NamedTuple):
    """What decides the order of a run's training examples, and which of them this shard reads."""

    dataset: Dataset
    batch_size: int
    seed: int
    repeats: int
    shard: tuple[int, int]

    @property
    def rows(self) -> int:
        """The rows of each batch that this shard reads."""
        return self.batch_size // self.shard[1]

    @property
    def steps(self) -> int:
        return self.dataset.num_examples("train") // self.batch_size

    def numbers(self, epoch: int) -> Int[np.ndarray, "steps rows"]:
        """Returns the number of the example in each row of an epoch.

        Only for a data set of which any example can be read at any time.
        """
        count = self.dataset.num_examples("train")
        if self.dataset.fits_in_memory():
            order = np.random.default_rng((self.seed, epoch)).permutation(count)
            every = order[np.arange(self.steps * self.batch_size) // self.repeats]
            return every.reshape(self.steps, self.shard[1], self.rows)[:, self.shard[0]]
        # The order of a data set that is read from disk in parts: see `_epoch_from_disk`.
        order = shuffled(count, _epoch_seed(self.seed, epoch))
        of_parts = [
            np.concatenate(
                [
                    np.repeat(order[slice(*bounds_of(part, count))], self.repeats)
                    for part in self.parts_read(number, epoch)
                ]
            )
            for number in self.own_parts
        ]
        each = self.rows // len(of_parts)  # rows of a batch from each part
        cut = [part[: self.steps * each].reshape(self.steps, each) for part in of_parts]
        return np.concatenate(cut, axis=1)

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
        if repeats == 1 or self.dataset.num_examples("train") < 2 * count * repeats:
            return [(number, count)]
        shares = ((epoch + later) % repeats for later in (0, 1))
        return [(number * repeats + share, count * repeats) for share in shares]


def _by_number(
    epochs: _Epochs,
    augment: Augment,
    first_epoch: int,
    first_step: int,
    read: Numbers,
) -> tf.data.Dataset:
    """Returns all batches from a step on, of a data set of which any example can be read.

    The numbers of each batch that is read are added to `read`.
    """
    dataset, rows, first_row = epochs.dataset, epochs.rows, epochs.shard[0] * epochs.rows

    def positions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the numbers of each batch's examples and the seeds of their augmentation."""
        for epoch in itertools.count(first_epoch):
            epoch_seed = np.full(rows, _epoch_seed(epochs.seed, epoch))
            for step, numbers in enumerate(epochs.numbers(epoch)):
                if epoch > first_epoch or step >= first_step:
                    at = step * epochs.batch_size + first_row + np.arange(rows)
                    read.append(numbers)
                    yield numbers, np.stack([epoch_seed, at], axis=-1)

    signature = (tf.TensorSpec((rows,), tf.int64), tf.TensorSpec((rows, 2), tf.int64))
    chosen = tf.data.Dataset.from_generator(positions, output_signature=signature)
    if dataset.fits_in_memory():
        images, labels = dataset.arrays("train")
        return chosen.map(
            lambda numbers, seeds: _to_batch(
                augment(tf.gather(images, numbers), seeds), tf.gather(labels, numbers)
            ),
            tf.data.AUTOTUNE,
        )
    table = dataset.table("train") or {}

    def decode(number: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = {name: tf.gather(values, number) for name, values in table.items()}
        return augment(dataset.decode(encoded), seeds), encoded["label"]

    decoded = chosen.unbatch().map(decode, tf.data.AUTOTUNE)
    return decoded.batch(rows, drop_remainder=True).map(_to_batch)


def _epoch_from_disk(
    epochs: _Epochs, augment: Augment, epoch: int, first_step: int
) -> tf.data.Dataset:
    """Returns the batches of one epoch from its step `first_step` on.

    The rows of a batch come from as many parts of the data set, a few rows from each. A process
    reads only the parts of its own rows. The order of the examples depends on the number of parts.
    """
    dataset, rows, shuffle_seed = epochs.dataset, epochs.rows, _epoch_seed(epochs.seed, epoch)
    rows_of_part = rows // len(epochs.own_parts)
    # Examples before `first_step` are only read, and never decoded.
    parts = [
        _part_of_epoch(epochs, number, epoch).skip(first_step * rows_of_part)
        for number in epochs.own_parts
    ]
    numbers = tf.data.Dataset.range(first_step * rows, epochs.steps * rows)
    examples = tf.data.Dataset.choose_from_datasets(
        parts, numbers.map(lambda n: n % rows // rows_of_part), stop_on_empty_dataset=False
    )
    first_row = epochs.shard[0] * rows
    positions = numbers.map(lambda n: n // rows * epochs.batch_size + first_row + n % rows)

    def decode(position: tf.Tensor, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = dataset.decode(encoded)
        return augment(image, _augmentation_seeds(shuffle_seed, position)), encoded["label"]

    decoded = tf.data.Dataset.zip(positions, examples).map(decode, tf.data.AUTOTUNE)
    return decoded.batch(rows, drop_remainder=True).map(_to_batch)


def _part_of_epoch(epochs: _Epochs, number: int, epoch: int) -> tf.data.Dataset:
    """Returns the examples that an epoch reads of a part, each as often as it comes in a row."""
    shuffle_seed = _epoch_seed(epochs.seed, epoch)
    first, *second = (
        epochs.dataset.encoded("train", shuffle_seed, part)
        for part in epochs.parts_read(number, epoch)
    )
    examples = first.concatenate(second[0]) if second else first
    if epochs.repeats == 1:
        return examples
    return examples.flat_map(
        lambda example: tf.data.Dataset.from_tensors(example).repeat(epochs.repeats)
    )


def number_of_parts(batch_size: int, processes: int) -> int:
    """Returns into how many parts a data set on disk is divided, so that each process has some.

    The largest power of 2 that divides the batch, up to PARTS, whatever the number of processes
    that divides it; otherwise one part per process.
    """
    parts = math.gcd(batch_size, PARTS)
    return parts if parts % processes == 0 else processes


def _rows_of_shard(
    enumerated: tf.data.Dataset, batch_size: int, shard: tuple[int, int]
) -> tf.data.Dataset:
    """Selects the rows of a shard in each batch from (position, example) pairs."""
    shard_index, num_shards = shard
    if num_shards == 1:
        return enumerated
    rows = batch_size // num_shards
    return enumerated.filter(lambda position, _: position % batch_size // rows == shard_index)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng((seed, epoch)).integers(2**31))


def _augmentation_seeds(epoch_seed: int, positions: tf.Tensor) -> tf.Tensor:
    """Returns two integers for each position in an epoch: (..., 2)."""
    return tf.stack([tf.fill(tf.shape(positions), tf.cast(epoch_seed, tf.int64)), positions], -1)


def _to_batch(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": images, "label": tf.cast(labels, tf.int32)}


def _to_numpy(
    dataset: Dataset, split: str, batches: tf.data.Dataset, read: Numbers | None = None
) -> Iterator[Batch]:
    """Yields batches as NumPy arrays.

    `read` has the numbers of the examples of the next batches, as far as they are known.
    Raises UserError if TensorFlow fails to read one, or if a label is none of the classes.
    """
    try:
        for batch in batches.as_numpy_iterator():
            check_labels(dataset, split, batch["label"])
            if read:
                read.popleft()
            yield batch
    except tf.errors.OpError as error:
        latest = itertools.chain.from_iterable(read or ())
        raise UserError(dataset.explain(error, split, map(int, latest))) from error


def check_labels(dataset: Dataset, split: str, labels: np.ndarray) -> None:
    """Raises UserError if a label is none of the classes of a data set."""
    outside = labels[(labels < 0) | (labels >= dataset.num_classes)]
    if len(outside):
        unlabelled = "; -1 means that it is not labelled" if outside[0] == -1 else ""
        raise UserError(
            f"the split {split} of {dataset.name} has the label {outside[0]}, but the labels of "
            f"its {dataset.num_classes} classes are 0 to {dataset.num_classes - 1}{unlabelled}"
        )


def note_untrained(dataset: Dataset, labels: np.ndarray) -> None:
    """Says in a note which classes are missing in `labels`, those of all training examples.

    Only for labels that are at hand: those of a set on disk would take an epoch to read.
    """
    untrained = np.setdiff1d(np.arange(dataset.num_classes), labels)
    if len(untrained):
        names = first_few(dataset.class_names[i] for i in untrained)
        note_once(f"{dataset.name}: no training example is left of {names}, which nobody learns")
