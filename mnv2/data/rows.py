"""Training batches of a small data set that lies in the memory of the devices: only numbers travel.

The host says which examples a batch has and how each is augmented; the device looks them up. Both
depend only on (seed, epoch, position in the epoch), as in `pipeline`.
"""

import math
from collections.abc import Iterator

import numpy as np

from mnv2.data.datasets import Dataset
from mnv2.data.preprocess import View

# By row of a batch: `index` of the example; with augmentation also `mirrored`, and `top` and `left`
# of the crop in the padded image.
type Rows = dict[str, np.ndarray]

AUGMENTATIONS = ("none", "flip", "crop_flip")  # which a device computes
MOST_BYTES = 1 << 30  # of images, in the memory of each device


def fits_on_device(dataset: Dataset, view: View) -> bool:
    """Tells whether the devices can hold a training set, and compute what is made of it."""
    if not (dataset.fits_in_memory() and view.augmentation in AUGMENTATIONS and view.only_moves):
        return False
    *size, channels = dataset.image_shape
    if tuple(size) != view.size or view.channels not in (0, channels):
        return False  # TensorFlow resizes on the host
    return dataset.num_examples("train") * math.prod(view.size) * channels <= MOST_BYTES


def train_rows(
    examples: int,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    augmentation: str = "none",
    pad: int = 4,
    repeats: int = 1,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Rows]:
    """Yields this shard's rows of the training batches from `first_step` on, without end.

    An epoch has every one of the `examples` once, in a new order, except for the last partial
    batch. `batch_size` counts the rows of all shards. `repeats` is as in `pipeline.train_batches`,
    `augmentation` and `pad` as in `preprocess.View`; the random choices differ from those.
    """
    shard_index, num_shards = shard
    rows = batch_size // num_shards
    steps_per_epoch = examples // batch_size
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        order = np.random.default_rng((seed, epoch)).permutation(examples)
        chosen: Rows = {"index": order[np.arange(examples) // repeats]}
        random = np.random.default_rng((seed, epoch, 1))
        if augmentation != "none":
            chosen["mirrored"] = random.random(examples) < 0.5
        if augmentation == "crop_flip":
            chosen["top"], chosen["left"] = random.integers(2 * pad + 1, size=(2, examples))
        chosen = {
            name: values if values.dtype == bool else values.astype(np.int32)
            for name, values in chosen.items()
        }
        for start in range(step * batch_size, steps_per_epoch * batch_size, batch_size):
            here = slice(start + shard_index * rows, start + (shard_index + 1) * rows)
            yield {name: values[here] for name, values in chosen.items()}
        epoch, step = epoch + 1, 0
