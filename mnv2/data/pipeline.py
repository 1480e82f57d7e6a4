"""Deterministic batches.

The order of an epoch and every augmentation depend only on (seed, epoch, position in the epoch). A
run that was stopped and is resumed therefore sees the same batches as one that was not stopped.

If there are several processes, each reads its shard of every batch, (index, number of shards).
Together the shards are the batches that a single process would read. For a data set on disk this
holds while the number of processes divides `number_of_parts`.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mnv2.data.datasets import Dataset
from mnv2.data.preprocess import View, train_image
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note_once

# A data set on disk is read in this many parts, each in its own order. It bounds the number of
# processes that read the same batches as one. A part reads up to two files at a time.
PARTS = 16

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
    if dataset.fits_in_memory():
        batches = _epochs_in_memory(dataset, augment, batch_size, seed, first_step, repeats, shard)
        yield from _to_numpy(dataset, "train", batches.prefetch(tf.data.AUTOTUNE))
        return
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        batches = _epoch_from_disk(dataset, augment, batch_size, seed, epoch, step, repeats, shard)
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
    yield from _to_numpy(dataset, split, named.prefetch(tf.data.AUTOTUNE))


def _epochs_in_memory(
    dataset: Dataset,
    augment: Augment,
    batch_size: int,
    seed: int,
    first_step: int,
    repeats: int,
    shard: tuple[int, int],
) -> tf.data.Dataset:
    """Returns all epochs as one endless pipeline: building one takes seconds, sometimes many."""
    images, labels = dataset.arrays("train")
    shard_index, num_shards = shard
    rows = batch_size // num_shards

    def positions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the indices of each batch's examples and the seeds of their augmentation."""
        steps_per_epoch = len(labels) // batch_size
        epoch, step = divmod(first_step, steps_per_epoch)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(labels))
            epoch_seed = np.full(rows, _epoch_seed(seed, epoch))
            for start in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
                here = np.arange(start + shard_index * rows, start + (shard_index + 1) * rows)
                yield order[here // repeats], np.stack([epoch_seed, here], axis=-1)
            epoch, step = epoch + 1, 0

    def batch(indices: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        return _to_batch(augment(tf.gather(images, indices), seeds), tf.gather(labels, indices))

    signature = (
        tf.TensorSpec((rows,), tf.int64),
        tf.TensorSpec((rows, 2), tf.int64),
    )
    indices_and_seeds = tf.data.Dataset.from_generator(positions, output_signature=signature)
    return indices_and_seeds.map(batch, tf.data.AUTOTUNE)


def _epoch_from_disk(
    dataset: Dataset,
    augment: Augment,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int,
    repeats: int,
    shard: tuple[int, int],
) -> tf.data.Dataset:
    """Returns the batches of one epoch from its step `first_step` on.

    The rows of a batch come from as many parts of the data set, a few rows from each. A process
    reads only the parts of its own rows. The order of the examples depends on the number of parts.
    """
    shuffle_seed = _epoch_seed(seed, epoch)
    steps_per_epoch = dataset.num_examples("train") // batch_size
    shard_index, num_shards = shard
    count = number_of_parts(batch_size, num_shards)
    rows, rows_of_part = batch_size // num_shards, batch_size // count
    own = range(shard_index * count // num_shards, (shard_index + 1) * count // num_shards)
    # Examples before `first_step` are only read, and never decoded.
    parts = [
        _part_of_epoch(dataset, shuffle_seed, (part, count), repeats, epoch).skip(
            first_step * rows_of_part
        )
        for part in own
    ]
    numbers = tf.data.Dataset.range(first_step * rows, steps_per_epoch * rows)
    examples = tf.data.Dataset.choose_from_datasets(
        parts, numbers.map(lambda n: n % rows // rows_of_part), stop_on_empty_dataset=False
    )
    positions = numbers.map(lambda n: n // rows * batch_size + shard_index * rows + n % rows)

    def decode(position: tf.Tensor, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = dataset.decode(encoded)
        return augment(image, _augmentation_seeds(shuffle_seed, position)), encoded["label"]

    decoded = tf.data.Dataset.zip(positions, examples).map(decode, tf.data.AUTOTUNE)
    return decoded.batch(rows, drop_remainder=True).map(_to_batch)


def _part_of_epoch(
    dataset: Dataset, shuffle_seed: int, part: tuple[int, int], repeats: int, epoch: int
) -> tf.data.Dataset:
    """Returns what an epoch reads of a part: with repeats, some of it, each example several times.

    Each epoch then reads another share, because examples of one file are shuffled only nearby: the
    first ones would come in every epoch, and the last ones never.
    """
    if repeats == 1:
        return dataset.encoded("train", shuffle_seed, part)
    number, count = part
    if dataset.num_examples("train") < 2 * count * repeats:
        examples = dataset.encoded("train", shuffle_seed, part)
    else:  # the second share completes the batches if the first one is too small by an example
        first, second = (
            dataset.encoded(
                "train",
                shuffle_seed,
                (number * repeats + (epoch + later) % repeats, count * repeats),
            )
            for later in (0, 1)
        )
        examples = first.concatenate(second)
    return examples.flat_map(lambda example: tf.data.Dataset.from_tensors(example).repeat(repeats))


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


def _to_numpy(dataset: Dataset, split: str, batches: tf.data.Dataset) -> Iterator[Batch]:
    """Yields batches as NumPy arrays.

    Raises UserError if TensorFlow fails to read one, or if a label is none of the classes.
    """
    try:
        for batch in batches.as_numpy_iterator():
            check_labels(dataset, split, batch["label"])
            yield batch
    except tf.errors.OpError as error:
        raise UserError(dataset.explain(error)) from error


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
