"""Deterministic batches.

The order of an epoch and every augmentation are functions of (seed, epoch, position in the epoch)
alone, so that a run that was stopped sees, from where it goes on, what it would have seen.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mnv2.data import preprocess
from mnv2.data.datasets import Dataset, find_broken_picture
from mnv2.errors import UserError

# Examples in the buffer that shuffles a set too large for memory. ImageNet: about 1.8 GB.
SHUFFLE_BUFFER = 16 * 1024


class Batch(TypedDict, total=False):
    """image: float32 b h w c, label: int32 b; in evaluation mask: float32 b, 0 for padding."""

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def train_batches(
    dataset: Dataset,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    size: tuple[int, int],
    augmentation: str = "none",
    pad: int = 4,
) -> Iterator[Batch]:
    """Yields batches for ever, from the `first_step`-th on.

    An epoch is every training example once in a new order, less the last partial batch.
    """
    steps_per_epoch = dataset.num_examples("train") // batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"batch_size {batch_size} is larger than the {dataset.num_examples('train')} "
            f"training examples of {dataset.name}"
        )
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        examples = _shuffled(dataset, seed, epoch).enumerate().skip(step * batch_size)

        def view(position, image, label, epoch=epoch):
            example_seed = tf.random.experimental.stateless_fold_in([seed, epoch], position)
            image = preprocess.train_image(
                image, example_seed, augmentation=augmentation, size=size, pad=pad
            )
            return {"image": image, "label": tf.cast(label, tf.int32)}

        batches = (
            examples.map(lambda i, example, view=view: view(i, *example), tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
        )
        yield from _numpy(dataset, batches)
        epoch, step = epoch + 1, 0


def eval_batches(
    dataset: Dataset, split: str, batch_size: int, *, size: tuple[int, int]
) -> Iterator[Batch]:
    """Yields every example of `split` exactly once; the last batch is padded, with mask 0."""

    def view(image, label):
        image = preprocess.eval_image(image, size=size)
        return {"image": image, "label": tf.cast(label, tf.int32)}

    batches = (
        _in_order(dataset, split)
        .map(view, tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    for batch in _numpy(dataset, batches):
        count = len(batch["label"])
        batch["mask"] = np.ones(count, np.float32)
        yield {name: _padded(value, batch_size) for name, value in batch.items()}  # type: ignore


def _shuffled(dataset: Dataset, seed: int, epoch: int) -> tf.data.Dataset:
    """(image, label) of the train split in the order of this seed and epoch."""
    random = np.random.default_rng((seed, epoch))
    if dataset.fits_in_memory():
        images, labels = dataset.arrays("train")
        order = tf.data.Dataset.from_tensor_slices(random.permutation(len(labels)))
        return order.map(lambda i: (images[i], labels[i]))
    shuffle_seed = int(random.integers(2**31))
    examples = dataset.encoded("train", shuffle_seed)
    examples = examples.shuffle(SHUFFLE_BUFFER, shuffle_seed, reshuffle_each_iteration=False)
    return _decoded(dataset, examples)


def _in_order(dataset: Dataset, split: str) -> tf.data.Dataset:
    if dataset.fits_in_memory():
        return tf.data.Dataset.from_tensor_slices(dataset.arrays(split))
    return _decoded(dataset, dataset.encoded(split))


def _decoded(dataset: Dataset, examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.map(
        lambda example: (dataset.decode(example["image"]), example["label"]), tf.data.AUTOTUNE
    )


def _numpy(dataset: Dataset, batches: tf.data.Dataset) -> Iterator[Batch]:
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.OpError as error:
        broken = find_broken_picture(dataset)
        if broken:
            raise UserError(f"broken picture {broken}: repair or remove it") from error
        raise UserError(
            f"data set {dataset.name} cannot be read, delete {dataset.builder.data_dir} to have it "
            f"prepared again: {str(error).splitlines()[0]}"
        ) from error


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    missing = length - len(values)
    return np.pad(values, [(0, missing)] + [(0, 0)] * (values.ndim - 1))
