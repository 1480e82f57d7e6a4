"""A data set that TensorFlow Datasets (TFDS) has prepared on disk."""

import contextlib
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data.base import Dataset, decoded, seen
from mnv2.data.decoding import decode_picture, short_message
from mnv2.data.splits import SPLITS, Part, bounds_of, check_split, divide
from mnv2.preprocess.host import View
from mnv2.runtime.errors import UserError, first_line
from mnv2.runtime.files import as_path, caches, write_cache
from mnv2.runtime.terminal import note

# A data set is kept in memory as one array if its decoded images are smaller than this.
IN_MEMORY_BYTES = 1 << 30

# Examples in the shuffle buffers of a data set too large for memory. ImageNet: about 1.8 GB, shared
# by the processes.
SHUFFLE_BUFFER = 16 * 1024

FIRST_LABELS = 16  # examples that show whether a split is labelled


@dataclasses.dataclass(eq=False)
class TfdsDataset(Dataset):
    """A TFDS data set that is prepared on disk.

    `validation` examples are held out from the end of train. TFDS splits without labels, as test in
    ImageNet, do not count.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    validation: int

    def __post_init__(self) -> None:
        features = self.builder.info.features
        self.folder = as_path(str(self.builder.data_dir))
        self.class_names = features["label"].names
        self.image_shape = features["image"].shape
        self.parts = self._divided()

    def _divided(self) -> dict[str, Part]:
        splits = self.builder.info.splits
        counts = {split: splits[split].num_examples for split in SPLITS if split in splits}
        if not counts:
            raise UserError(
                f"{self.name} has none of the splits {', '.join(SPLITS)}: it has "
                f"{', '.join(sorted(splits)) or 'no splits'}"
            )
        unlabelled = [x for x in ("test", "validation") if x in counts and not self._is_labelled(x)]
        labelled = {split: count for split, count in counts.items() if split not in unlabelled}
        parts = divide(self.name, labelled, self.validation, unlabelled)
        held_out = [split for split, part in parts.items() if part.split == "train" != split]
        if held_out and self.builder.info.disable_shuffling:
            note(
                f"{self.name} keeps its examples in their original order: "
                f"{' and '.join(held_out)}, held out from its end, may lack classes"
            )
        return parts

    def _is_labelled(self, split: str) -> bool:
        """Tells whether any of the first examples of a TFDS split belongs to a class."""
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        examples = _stored(self.builder, split, config)
        try:
            labels = [int(example["label"]) for example in examples.take(FIRST_LABELS)]
        except tf.errors.OpError:
            return True  # it cannot be read, which is said when it is used
        return not labels or max(labels) >= 0

    def tfds_range(self, split: str) -> Part:
        """Returns the TFDS split that contains `split`, and the start and end in that split."""
        check_split(self.name, split, self.parts)
        return self.parts[split]

    def num_examples(self, split: str) -> int:
        _, start, stop = self.tfds_range(split)
        return stop - start

    def fits_in_memory(self) -> bool:
        height, width, channels = self.image_shape
        if height is None or width is None:
            return False
        splits = self.builder.info.splits
        used = "train" if "train" in splits else self.tfds_range("test").split
        return splits[used].num_examples * height * width * channels < IN_MEMORY_BYTES

    def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        tfds_split, start, stop = self.tfds_range(split)
        images, labels = _decoded_arrays(self.builder, tfds_split)
        return images[start:stop], labels[start:stop]

    def encoded(
        self, split: str, shuffle_seed: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Returns encoded examples. The seed shuffles files, then examples within a buffer.

        Only the files of `part` are read.
        """
        tfds_split, first, _ = self.tfds_range(split)
        start, stop = (first + at for at in bounds_of(part, self.num_examples(split)))
        config = tfds.ReadConfig(
            shuffle_seed=shuffle_seed,
            interleave_cycle_length=max(2, 16 // part[1]),
            try_autocache=False,
            add_tfds_id=True,
        )
        tfds_slice = f"{tfds_split}[{start}:{stop}]"
        examples = _stored(self.builder, tfds_slice, config, shuffle=shuffle_seed is not None)
        examples = examples.map(_with_index)
        if shuffle_seed is None:
            return examples
        buffer = max(1, SHUFFLE_BUFFER // part[1])
        return examples.shuffle(buffer, shuffle_seed, reshuffle_each_iteration=False)

    def table(self, split: str) -> dict[str, tf.Tensor] | None:
        """Returns all examples of a small data set, whose pictures are decoded already."""
        if not self.fits_in_memory():
            return None
        images, labels = map(tf.constant, self.arrays(split))
        return {"image": images, "label": labels}

    def decode(
        self, example: dict[str, tf.Tensor], view: View | None = None, *seed: Any
    ) -> tf.Tensor:
        if example["image"].dtype != tf.string:  # of a table
            return seen(view, example["image"], *seed)
        if self.image_shape[2] != 3:
            feature = self.builder.info.features["image"]
            return seen(view, feature.decode_example(example["image"]), *seed)
        read = functools.partial(decode_picture, turn=False)
        image = decoded(read, example["image"], view, *seed)
        if view is None:
            image.set_shape(self.image_shape)
        return image

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed: a UserError, or damaged files."""
        if said := str(error).partition("UserError: ")[2]:
            return (
                f"cannot read a picture of {self.name}, or see it as data.train and "
                f"data.evaluation say: {short_message(said)}"
            )
        return (
            f"cannot read data set {self.name}: {first_line(error)}; "
            f"delete {self.folder} to prepare it again"
        )


def _stored(
    builder: tfds.core.DatasetBuilder, split: str, config: tfds.ReadConfig, *, shuffle: bool = False
) -> tf.data.Dataset:
    """Returns the examples of a TFDS split, with their pictures as they are stored."""
    skipping = {"image": tfds.decode.SkipDecoding()}
    return builder.as_dataset(split, shuffle_files=shuffle, read_config=config, decoders=skipping)


def _with_index(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Gives an example a number of its own: a hash of its file and its position there."""
    name = example.pop("tfds_id")
    index = tf.strings.to_hash_bucket_fast(name, 2**31 - 1)
    return {**example, "index": tf.cast(index, tf.int32)}


@functools.lru_cache(maxsize=4)  # the runs of one process share the arrays of their splits
def _decoded_arrays(builder: tfds.core.DatasetBuilder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns all images and labels of a TFDS split, in the order in which TFDS slices it.

    They are kept for later processes: to decode Fashion-MNIST takes 3 s, to read its array 0.05 s.
    """
    files = [as_path(str(file)) for file in builder.info.splits[split].filepaths]
    key = repr([(str(file), file.stat().length, file.stat().mtime) for file in files])
    name = f"decoded/{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    shape = (builder.info.splits[split].num_examples, *builder.info.features["image"].shape)
    if (folder := caches()) and (folder / name).exists():
        with contextlib.suppress(Exception), np.load(folder / name) as kept:  # damaged in any way
            images, labels = kept["images"], kept["labels"]
            if (images.shape, images.dtype, labels.shape) == (shape, np.uint8, shape[:1]):
                return images, labels
    config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)  # a file at a time
    examples = builder.as_dataset(split=split, batch_size=-1, read_config=config)
    images, labels = (np.asarray(examples[feature]) for feature in ("image", "label"))
    write_cache(name, lambda path: _save(path, images, labels))
    return images, labels


def _save(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    with path.open("wb") as file:  # to the name of a path without .npz, NumPy would add it
        np.savez(file, images=images, labels=labels)
