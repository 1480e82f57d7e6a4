"""Data sets by name: what they are called, where they come from, how they are split."""

import dataclasses
import functools
import os
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import fashion_mnist
from mnv2.data.download import reachable
from mnv2.errors import UserError, check_choice
from mnv2.files import locked

# Sets whose decoded images are smaller than this are kept in memory as one array.
IN_MEMORY_BYTES = 1 << 30

FOLDER_PREFIX = "folder:"


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A classification data set, prepared on disk.

    `validation` examples are held out from the end of its train split; `test` is its test split,
    or its validation split where that is all there is, as in ImageNet.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    validation: int

    @property
    def num_classes(self) -> int:
        return self.builder.info.features["label"].num_classes

    @property
    def class_names(self) -> list[str]:
        return self.builder.info.features["label"].names

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels); None where it differs from image to image."""
        return self.builder.info.features["image"].shape

    def split(self, name: str) -> tuple[str, int, int]:
        """Which of TFDS's splits holds `train`, `validation` or `test`, from where to where."""
        check_choice(name, ("train", "validation", "test"), "split")
        splits = self.builder.info.splits
        if name == "test":
            whole = "test" if "test" in splits else "validation"
            return whole, 0, splits[whole].num_examples
        end = splits["train"].num_examples
        cut = end - self.validation
        return ("train", 0, cut) if name == "train" else ("train", cut, end)

    def num_examples(self, split: str) -> int:
        _, start, stop = self.split(split)
        return stop - start

    def fits_in_memory(self) -> bool:
        height, width, channels = self.image_shape
        if height is None or width is None:
            return False
        train = self.builder.info.splits["train"].num_examples
        return train * height * width * channels < IN_MEMORY_BYTES

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        """All images (n h w c, uint8) and labels (n, int64), decoded once; for small sets."""
        whole, start, stop = self.split(split)
        return _decoded_arrays(self.builder, f"{whole}[{start}:{stop}]")

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Examples with images still encoded; files in an order that `shuffle_seed` sets."""
        whole, start, stop = self.split(split)
        decoders = {"image": tfds.decode.SkipDecoding()}
        if isinstance(self.builder, tfds.ImageFolder):
            # Its classes are mixed, in an order that never changes; it knows no parts of splits.
            examples = self.builder.as_dataset(whole, shuffle_files=False, decoders=decoders)
            return examples.skip(start).take(stop - start)
        read_config = tfds.ReadConfig(
            shuffle_seed=shuffle_seed, interleave_cycle_length=16, try_autocache=False
        )
        return self.builder.as_dataset(
            f"{whole}[{start}:{stop}]",
            shuffle_files=shuffle_seed is not None,
            read_config=read_config,
            decoders=decoders,
        )

    def decode(self, encoded: tf.Tensor) -> tf.Tensor:
        return self.builder.info.features["image"].decode_example(encoded)


@functools.cache
def open_dataset(name: str, data_dir: str | None = None, validation: int = 0) -> Dataset:
    """Opens a TFDS classification set by name, preparing it first where it is missing.

    `folder:PATH` names a folder of pictures, PATH/SPLIT/CLASS/PICTURE, with the splits `train` and
    `test`. `validation` examples are held out from the end of train.

    Raises UserError for an unknown name, a set without images and labels, one that cannot be
    downloaded here, and a `validation` that leaves nothing to train on.
    """
    builder = _folder_builder(name) if name.startswith(FOLDER_PREFIX) else _builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(f"data set {name!r} is not one for classification: {sorted(features)}")
    if not name.startswith(FOLDER_PREFIX) and not builder.data_path.exists():
        builder = _prepare(name, data_dir)
    train = builder.info.splits["train"].num_examples
    if not 0 <= validation < train:
        raise UserError(
            f"validation must be 0 to {train - 1} of the {train} training examples of {name}, "
            f"got {validation}"
        )
    return Dataset(name, builder, validation)


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    check_choice(name.split(":")[0].split("/")[0], tfds.list_builders(), "data set")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise UserError(f"cannot open data set {name!r}: {_first_line(error)}") from error


def _folder_builder(name: str) -> tfds.core.DatasetBuilder:
    root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
    for split in ("train", "test"):
        if not any((root / split).glob("*/*")):
            raise UserError(f"no pictures in {root}: expected {root}/{split}/CLASS/PICTURE.jpg")
    return tfds.ImageFolder(str(root))


def _prepare(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """A builder whose set is prepared, here or by another process while this one waited."""
    builder = _builder(name, data_dir)
    try:
        with locked(Path(builder.data_dir).parents[1] / f".{builder.name}.lock"):
            builder = _builder(name, data_dir)  # it looks at what is there when it is made
            if not builder.data_path.exists():
                _download_and_prepare(name, builder)
        return builder
    except UserError:
        raise
    except AssertionError as error:  # TFDS's way to say: download this one by hand
        raise UserError(
            f"{name} must be downloaded by hand: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:
        raise UserError(
            f"cannot prepare {name} in {builder.data_dir}: {_first_line(error)}"
        ) from error


def _download_and_prepare(name: str, builder: tfds.core.DatasetBuilder) -> None:
    print(f"preparing {name} in {builder.data_dir}", flush=True)
    if name == "fashion_mnist":
        fashion_mnist.prepare(builder)
        return
    url = next(iter(builder.url_infos), None)
    if url and not reachable(url):
        raise UserError(f"cannot download {name}: {url} is out of reach; is there a network?")
    builder.download_and_prepare()


@functools.cache  # runs of one process share them
def _decoded_arrays(builder: tfds.core.DatasetBuilder, split: str) -> tuple[tf.Tensor, tf.Tensor]:
    whole = builder.as_dataset(split=split, batch_size=-1, shuffle_files=False)
    return whole["image"], whole["label"]


def find_broken_picture(dataset: Dataset) -> str | None:
    """The first picture of a folder that cannot be decoded; None for other data sets."""
    if not dataset.name.startswith(FOLDER_PREFIX):
        return None
    root = Path(dataset.name.removeprefix(FOLDER_PREFIX)).expanduser()
    for path in sorted(root.glob("*/*/*")):
        try:
            tf.io.decode_image(tf.io.read_file(os.fspath(path)), expand_animations=False)
        except tf.errors.OpError:
            return os.fspath(path)
    return None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
