"""Deterministic batches.

The order of an epoch and every augmentation are functions of (seed, epoch, position in the epoch)
alone, so that a run that was stopped sees, from where it goes on, what it would have seen. Of
several processes each reads its `share`, (which, of how many): together they see what one would.
"""

import functools
from collections.abc import Callable, Iterator
from typing import TypedDict

import numpy as np
import tensorflow as tf

from mnv2.data import preprocess
from mnv2.data.datasets import Dataset
from mnv2.runtime.errors import UserError

View = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


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
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields this share's rows of batches for ever, from the `first_step`-th on.

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
        batches = _epochs_in_memory(dataset, view, batch_size, seed, first_step, share)
        yield from _numpy(dataset, batches.prefetch(tf.data.AUTOTUNE))
        return
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        batches = _epoch_from_disk(dataset, view, batch_size, seed, epoch, step, share)
        yield from _numpy(dataset, batches.prefetch(tf.data.AUTOTUNE))
        epoch, step = epoch + 1, 0


def eval_batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    view: Callable[[tf.Tensor], tf.Tensor],
    share: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Yields every example of `split` exactly once in all shares, as many batches in each.

    The last batch is filled up, with mask 0. `view` takes pictures (... h w c, uint8), as
    `preprocess.eval_image` does.
    """
    rows = batch_size // share[1]
    in_memory = dataset.fits_in_memory()
    if in_memory:
        images, labels = dataset.arrays(split)
        encoded = tf.data.Dataset.from_tensor_slices({"image": images, "label": labels})
    else:
        encoded = dataset.encoded(split)
    missing = -dataset.num_examples(split) % batch_size
    filling = encoded.take(1).cache().repeat(missing)
    masks = [tf.data.Dataset.from_tensors(mask).repeat() for mask in (1.0, 0.0)]
    examples = tf.data.Dataset.zip(encoded, masks[0]).concatenate(
        tf.data.Dataset.zip(filling, masks[1])
    )
    examples = _only(examples.enumerate(), batch_size, share)

    def decoded(_: tf.Tensor, row: tuple[dict[str, tf.Tensor], tf.Tensor]) -> tuple[tf.Tensor, ...]:
        example, mask = row
        image = view(dataset.decode(example))
        return image, example["label"], mask

    if in_memory:
        batches = examples.batch(rows).map(
            lambda _, row: (view(row[0]["image"]), row[0]["label"], row[1])
        )
    else:
        batches = examples.map(decoded, tf.data.AUTOTUNE).batch(rows)
    named = batches.map(lambda image, label, mask: {**_batch(image, label), "mask": mask})
    yield from _numpy(dataset, named.prefetch(tf.data.AUTOTUNE))


def _epochs_in_memory(
    dataset: Dataset,
    view: View,
    batch_size: int,
    seed: int,
    first_step: int,
    share: tuple[int, int],
) -> tf.data.Dataset:
    """Epochs without end, as one pipeline: to build one anew takes seconds, now and then many."""
    images, labels = dataset.arrays("train")
    which, shares = share
    rows = batch_size // shares

    def positions() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each batch, which examples, and the seeds of their augmentation."""
        steps_per_epoch = len(labels) // batch_size
        epoch, step = divmod(first_step, steps_per_epoch)
        while True:
            order = np.random.default_rng((seed, epoch)).permutation(len(labels))
            epoch_seed = np.full(rows, _epoch_seed(seed, epoch))
            for start in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
                here = np.arange(start + which * rows, start + (which + 1) * rows)
                yield order[here], np.stack([epoch_seed, here], axis=-1)
            epoch, step = epoch + 1, 0

    def batch(chosen: tf.Tensor, seeds: tf.Tensor) -> dict[str, tf.Tensor]:
        return _batch(view(tf.gather(images, chosen), seeds), tf.gather(labels, chosen))

    signature = (
        tf.TensorSpec((rows,), tf.int64),
        tf.TensorSpec((rows, 2), tf.int64),
    )
    chosen_and_seeds = tf.data.Dataset.from_generator(positions, output_signature=signature)
    return chosen_and_seeds.map(batch, tf.data.AUTOTUNE)


def _epoch_from_disk(
    dataset: Dataset,
    view: View,
    batch_size: int,
    seed: int,
    epoch: int,
    first_step: int,
    share: tuple[int, int],
) -> tf.data.Dataset:
    shuffle_seed = _epoch_seed(seed, epoch)
    examples = dataset.encoded("train", shuffle_seed)
    # Skipped before they are decoded: going on in the middle of an epoch costs reading alone, and
    # so does what other processes decode.
    whole_batches = dataset.num_examples("train") // batch_size * batch_size
    examples = examples.take(whole_batches).enumerate().skip(first_step * batch_size)
    examples = _only(examples, batch_size, share)

    def example(position: tf.Tensor, encoded: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = dataset.decode(encoded)
        return view(image, _seeds(shuffle_seed, position)), encoded["label"]

    decoded = examples.map(example, tf.data.AUTOTUNE)
    return decoded.batch(batch_size // share[1], drop_remainder=True).map(_batch)


def _only(examples: tf.data.Dataset, batch_size: int, share: tuple[int, int]) -> tf.data.Dataset:
    """Of examples with their positions, the rows of each batch that are this share's."""
    which, shares = share
    if shares == 1:
        return examples
    rows = batch_size // shares
    return examples.filter(lambda position, _: position % batch_size // rows == which)


def _epoch_seed(seed: int, epoch: int) -> int:
    return int(np.random.default_rng((seed, epoch)).integers(2**31))


def _seeds(epoch_seed: int, positions: tf.Tensor) -> tf.Tensor:
    """A pair of numbers for each position in an epoch: (..., 2)."""
    return tf.stack([tf.fill(tf.shape(positions), tf.cast(epoch_seed, tf.int64)), positions], -1)


def _batch(images: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    return {"image": images, "label": tf.cast(labels, tf.int32)}


def _numpy(dataset: Dataset, batches: tf.data.Dataset) -> Iterator[Batch]:
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.OpError as error:
        raise UserError(dataset.explain(error)) from error
