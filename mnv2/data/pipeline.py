"""Deterministic batches.

The order of an epoch and every augmentation depend only on (seed, epoch, position in the epoch). A
run that was stopped and is resumed therefore sees the same batches as one that was not stopped.

If there are several processes, each reads its shard of every batch, (index, number of shards).
Together the shards are the batches that a single process would read.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mnv2.data import preprocess
from mnv2.data.datasets import Dataset
from mnv2.runtime.errors import UserError

Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (images, seeds) -> images


class Batch(TypedDict, total=False):
    """A batch of examples; only batches for evaluation have a mask.

    image  float32 b h w c
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
    size: tuple[int, int],
    augmentation: str = "none",
    pad: int = 4,
    pixels: preprocess.Pixels = preprocess.MINUS_ONE_TO_ONE,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields this shard's rows of the training batches from `first_step` on, without end.

    An epoch has every training example once, in a new order, except for the last partial batch.
    `batch_size` counts the rows of all shards. `augmentation`, `size`, `pad` and `pixels` are as in
    `preprocess.train_image`.

    Raises UserError if a batch is larger than the training set, or if an example cannot
    be read or has no class.
    """
    check_batch_size(batch_size, dataset)
    steps_per_epoch = dataset.num_examples("train") // batch_size
    augment = functools.partial(
        preprocess.train_image, augmentation=augmentation, size=size, pad=pad, pixels=pixels
    )
    if dataset.fits_in_memory():
        batches = _epochs_in_memory(dataset, augment, batch_size, seed, first_step, shard)
        yield from _to_numpy(dataset, "train", batches.prefetch(tf.data.AUTOTUNE))
        return
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        batches = _epoch_from_disk(dataset, augment, batch_size, seed, epoch, step, shard)
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
    `preprocess.eval_image` does.

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
                yield order[here], np.stack([epoch_seed, here], axis=-1)
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
    shard: tuple[int, int],
) -> tf.data.Dataset:
    """Returns the batches of one epoch from its step `first_step` on."""
    shuffle_seed = _epoch_seed(seed, epoch)
    examples = dataset.encoded("train", shuffle_seed)
    # Examples are dropped before they are decoded, so that examples before `first_step` and
    # examples of other processes are only read.
    whole_batches = dataset.num_examples("train") // batch_size * batch_size
    examples = examples.take(whole_batches).enumerate().skip(first_step * batch_size)
    examples = _rows_of_shard(examples, batch_size, shard)

    def decode(position: tf.Tensor, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = dataset.decode(encoded)
        return augment(image, _augmentation_seeds(shuffle_seed, position)), encoded["label"]

    decoded = examples.map(decode, tf.data.AUTOTUNE)
    return decoded.batch(batch_size // shard[1], drop_remainder=True).map(_to_batch)


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
            _check_labels(dataset, split, batch["label"])
            yield batch
    except tf.errors.OpError as error:
        raise UserError(dataset.explain(error)) from error


def _check_labels(dataset: Dataset, split: str, labels: np.ndarray) -> None:
    outside = labels[(labels < 0) | (labels >= dataset.num_classes)]
    if len(outside):
        unlabelled = "; -1 means that it is not labelled" if outside[0] == -1 else ""
        raise UserError(
            f"the split {split} of {dataset.name} has the label {outside[0]}, but the labels of "
            f"its {dataset.num_classes} classes are 0 to {dataset.num_classes - 1}{unlabelled}"
        )
