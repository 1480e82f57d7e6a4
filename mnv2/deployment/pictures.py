"""Pictures of a data set as an exported network takes them: to calibrate int8, and to compare."""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from mnv2 import data
from mnv2.deployment.program import Program
from mnv2.training.evaluation import Network, view_of


def draw(
    network: Network, dataset: data.Dataset, split: str, count: int
) -> Float[np.ndarray, "n h w c"]:
    """Returns up to `count` images of a split, always the same ones, in [0, 255]."""
    view = view_of(network.preprocess, network.image_size, network.channels)
    examples = itertools.islice(dataset.encoded(split, shuffle_seed=0), count)
    return np.stack([np.asarray(view(dataset.decode(example)), np.float32) for example in examples])


def batches(program: Program, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yields whole batches of what the program takes; the images that are left over are dropped."""
    size = program.image.shape[0]
    for start in range(0, len(images) - size + 1, size):
        yield images[start : start + size]
