"""Training batches of a small data set that lies in the memory of the devices: only numbers travel.

The host says which examples a batch has and how each is augmented; the device looks them up. Both
depend only on (seed, epoch, position in the epoch), as in `pipeline`.
"""

from collections.abc import Iterator

import numpy as np

from mnv2.data.datasets import Dataset

# By row of a batch: `index` of the example; with augmentation also `mirrored`, and `top` and `left`
# of the crop in the padded image.
type Rows = dict[str, np.ndarray]

AUGMENTATIONS = ("none", "flip", "crop_flip")  # which a device computes
MOST_BYTES = 1 << 30  # of images, in the memory of each device


def fits_on_device(
    dataset: Dataset, size: tuple[int, int], channels: int, augmentation: str
) -> bool:
    """Tells whether the devices can hold a training set, and compute what is made of it."""
    if not dataset.fits_in_memory() or augmentation not in AUGMENTATIONS:
        return False
    height, width, theirs = dataset.image_shape
    if (height, width) != size or channels not in (0, theirs):
        return False  # TensorFlow resizes on the host
    return dataset.num_examples("train") * size[0] * size[1] * theirs <= MOST_BYTES


def train_rows(
    examples: int,
    batch_size: int,
    *,
    seed: int,
    first_step: int = 0,
    augmentation: str = "none",
    pad: int = 4,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[Rows]:
    """Yields this shard's rows of the training batches from `first_step` on, without end.

    An epoch has every one of the `examples` once, in a new order, except for the last partial
    batch. `batch_size` counts the rows of all shards. `augmentation` and `pad` are as in
    `preprocess.train_image`; the random choices differ from those.
    """
    shard_index, num_shards = shard
    rows = batch_size // num_shards
    steps_per_epoch = examples // batch_size
    epoch, step = divmod(first_step, steps_per_epoch)
    while True:
        chosen: Rows = {"index": np.random.default_rng((seed, epoch)).permutation(examples)}
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
