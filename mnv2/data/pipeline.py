"""Deterministic batches.

The order of an epoch and every augmentation are functions of (seed, epoch, position in the epoch)
alone, so that a run that was stopped sees, from where it goes on, what it would have seen.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mnv2.data import preprocess
from mnv2.data.datasets import Dataset, find_broken_picture
from mnv2.errors import UserError

View = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

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
    pixels: preprocess.Pixels = preprocess.UNIT_RANGE,
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
    view = functools.partial(
        preprocess.train_image, augmentation=augmentation, size=size, pad=pad, pixels=pixels
    )
    if dataset.fits_in_memory():
        batches = _epochs_in_memory(dataset, view, batch_size, seed, first_step)
        yield from _numpy(dataset, batches.prefetch(tf.data.AUTOTUNE))
        return
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        batches = _epoch_from_disk(dataset, view, batch_size, seed, epoch, step)
        yield from _numpy(dataset, batches.prefetch(tf.data.AUTOTUNE))
        epoch, step = epoch + 1, 0


def eval_batches(
    dataset: Dataset, split: str, batch_size: int, *, view: Callable[[tf.Tensor], tf.Tensor]
) -> Iterator[Batch]:
    """Yields every example of `split` exactly once; the last batch is padded, with mask 0.

    `view` takes pictures (... h w c, uint8), as `preprocess.eval_image` does.
    """
    if dataset.fits_in_memory():
        examples = tf.data.Dataset.from_tensor_slices(dataset.arrays(split))
        batches = examples.batch(batch_size).map(lambda x, y: _batch(view(x), y))
    else:
        examples = _decoded(dataset, dataset.encoded(split))
        examples = examples.map(lambda x, y: (view(x), y), tf.data.AUTOTUNE)
        batches = examples.batch(batch_size).map(_batch)
    for batch in _numpy(dataset, batches.prefetch(tf.data.AUTOTUNE)):
        batch["mask"] = np.ones(len(batch["label"]), np.float32)
        yield {name: _padded(value, batch_size) for name, value in batch.items()}  # type: ignore


def _epochs_in_memory(
    dataset: Dataset, view: View, batch_size: int, seed: int, first_step: int
) -> tf.data.Dataset:
    """Epochs without end, as one pipeline: to build one anew takes seconds, now and then many."""
    images, labels = dataset.arrays("train")

    def positions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each batch, which examples, and the seeds of their augmentation."""
        steps_per_epoch = len(labels) // batch_size
        epoch, step = divmod(first_step, steps_per_epoch)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(labels))
            epoch_seed = np.full(batch_size, _epoch_seed(seed, epoch))
            for start in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
                here = np.arange(start, start + batch_size)
                yield order[here], np.stack([epoch_seed, here], axis=-1)
            epoch, step = epoch + 1, 0

    def batch(chosen: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        return _batch(view(tf.gather(images, chosen), seeds), tf.gather(labels, chosen))

    signature = (
        tf.TensorSpec((batch_size,), tf.int64),
        tf.TensorSpec((batch_size, 2), tf.int64),
    )
    chosen_and_seeds = tf.data.Dataset.from_generator(positions, output_signature=signature)
    return chosen_and_seeds.map(batch, tf.data.AUTOTUNE)


def _epoch_from_disk(
    dataset: Dataset, view: View, batch_size: int, seed: int, epoch: int, first_step: int
) -> tf.data.Dataset:
    shuffle_seed = _epoch_seed(seed, epoch)
    examples = dataset.encoded("train", shuffle_seed)
    examples = examples.shuffle(SHUFFLE_BUFFER, shuffle_seed, reshuffle_each_iteration=False)
    # Skipped before they are decoded: going on in the middle of an epoch costs reading alone.
    examples = examples.enumerate().skip(first_step * batch_size)

    def example(position: tf.Tensor, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = dataset.decode(encoded["image"])
        return view(image, _seeds(shuffle_seed, position)), encoded["label"]

    decoded = examples.map(example, tf.data.AUTOTUNE)
    return decoded.batch(batch_size, drop_remainder=True).map(_batch)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng((seed, epoch)).integers(2**31))


def _seeds(epoch_seed: int, positions: tf.Tensor) -> tf.Tensor:
    """A pair of numbers for each position in an epoch: (..., 2)."""
    return tf.stack([tf.fill(tf.shape(positions), tf.cast(epoch_seed, tf.int64)), positions], -1)


def _decoded(dataset: Dataset, examples: tf.data.Dataset) -> tf.data.Dataset:
    return examples.map(
        lambda example: (dataset.decode(example["image"]), example["label"]), tf.data.AUTOTUNE
    )


def _batch(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": images, "label": tf.cast(labels, tf.int32)}


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
