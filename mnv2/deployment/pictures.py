"""Pictures as an exported network takes them: to calibrate int8, and to compare."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mnv2 import data
from mnv2.data.decoding import read_picture
from mnv2.data.folder_tree import files_below
from mnv2.deployment.program import Program
from mnv2.pretrained import Pretrained
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import warn

HELD_OUT = ("test", "val", "valid", "validation")  # folders beside that of the training pictures


def draw(
    network: Pretrained, dataset: "data.Dataset", split: str, count: int
) -> Float[np.ndarray, "n h w c"]:
    """Returns up to `count` images of a split, always the same ones, in [0, 255].

    Raises UserError, which names them, if pictures cannot be read.
    """
    view = network.preprocess.view_of(network.image_size, network.channels)
    import tensorflow as tf  # reads the data set already

    examples = itertools.islice(dataset.encoded(split, shuffle_seed=0), count)
    try:
        return np.stack([np.asarray(view(dataset.decode(x).numpy()), np.float32) for x in examples])
    except tf.errors.OpError as error:
        raise UserError(dataset.explain(error)) from error


def draw_any(
    network: Pretrained, name: str, data_dir: str | None, count: int
) -> Float[np.ndarray, "n h w c"]:
    """Returns up to `count` images to calibrate with, always the same ones, in [0, 255].

    `name` is a TFDS data set, of whatever classes, or `folder:PATH`: the training pictures if it
    has splits of classes, otherwise all below PATH, with or without classes. A picture of a folder
    that cannot be read is left out, after a warning. Raises UserError if there is none.
    """
    if not name.startswith(data.FOLDER_PREFIX):
        dataset = data.open_dataset(name, data_dir)
        split = "train" if "train" in dataset.splits else dataset.splits[0]
        return draw(network, dataset, split, count)
    root = Path(name.removeprefix(data.FOLDER_PREFIX)).expanduser()
    if not root.is_dir():
        raise UserError(f"no pictures to calibrate with: there is no local folder {root}")
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    is_split = "train" in folders and not folders.keys().isdisjoint(HELD_OUT)
    files = files_below(folders["train"] if is_split else root)[0]
    np.random.default_rng(0).shuffle(files)
    images = np.array(list(itertools.islice(_images(network, files), count)))
    if not len(images):
        raise UserError(f"no pictures to calibrate with in {root}, at any depth")
    return images


def _images(network: Pretrained, files: list[Path]) -> Iterator[np.ndarray]:
    view = network.preprocess.view_of(network.image_size, network.channels)
    for file in files:
        try:
            yield np.asarray(view(read_picture(file)), np.float32)
        except UserError as error:
            warn(f"cannot read picture {file}: {error}; it is left out")


def batches(program: Program, images: np.ndarray) -> Iterator[np.ndarray]:
    """Yields whole batches of what the program takes; the images that are left over are dropped."""
    size = program.image.shape[0]
    for start in range(0, len(images) - size + 1, size):
        yield images[start : start + size]
