"""Fashion-MNIST is decoded once for all tests and the processes that they start: it takes 6 s."""

import functools
import re
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import tfds_dataset
from mnv2.runtime.files import locked, replacing

FOLDER = Path(__file__).parents[1] / ".pytest_cache" / "decoded"
PREPARED = Path(tfds.core.constants.DATA_DIR).expanduser() / "fashion_mnist"

_decode = tfds_dataset._decoded_arrays


@functools.cache
def _arrays(builder: tfds.core.DatasetBuilder, tfds_slice: str) -> tuple[tf.Tensor, tf.Tensor]:
    if Path(builder.data_dir).parent != PREPARED:
        return _decode(builder, tfds_slice)
    split, start, stop = re.fullmatch(r"(\w+)\[(\d+):(\d+)\]", tfds_slice).groups()
    images, labels = _whole(Path(builder.data_dir), split)
    return images[int(start) : int(stop)], labels[int(start) : int(stop)]


@functools.cache
def _whole(folder: Path, split: str) -> tuple[tf.Tensor, tf.Tensor]:
    prepared = (folder / "dataset_info.json").stat().st_mtime_ns
    path = FOLDER / f"{split}-{prepared}.npz"
    with locked(path.with_suffix(".lock")):
        if not path.exists():
            images, labels = _decode(tfds.builder_from_directory(folder), split)
            with replacing(path) as unfinished, unfinished.open("wb") as file:
                np.savez(file, images=images, labels=labels)
    with np.load(path) as stored:
        return tf.constant(stored["images"]), tf.constant(stored["labels"])


tfds_dataset._decoded_arrays = _arrays
