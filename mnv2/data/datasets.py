"""Data sets by name: from TensorFlow Datasets (TFDS), or from a folder of pictures."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import fashion_mnist
from mnv2.data.broken import ON_BROKEN, BrokenExample, find_broken, raise_or_warn
from mnv2.data.connection import reachable
from mnv2.data.image_folder import open_image_folder
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import locked

# A data set is kept in memory as one array if its decoded images are smaller than this.
IN_MEMORY_BYTES = 1 << 30

# Examples in the shuffle buffer of a data set too large for memory. ImageNet: about 1.8 GB.
SHUFFLE_BUFFER = 16 * 1024

FOLDER_PREFIX = "folder:"


@runtime_checkable
class Dataset(Protocol):
    """A classification data set with the splits `train`, `validation` and `test`."""

    @property
    def name(self) -> str: ...

    @property
    def validation(self) -> int:
        """The number of examples that are held out from the end of train."""

    @property
    def folder(self) -> Path:
        """The folder of the data set."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str]: ...

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels); None if the size differs from image to image."""

    def num_examples(self, split: str) -> int: ...

    def fits_in_memory(self) -> bool: ...

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns all images (n h w c, uint8) and labels (n, int64) of a small data set.

        The images are decoded once.
        """

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Returns examples with `label` and an encoded image, in the order that the seed gives."""

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        """Decodes the image of an encoded example: h w c, uint8."""

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed."""


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsDataset:
    """A TFDS data set that is prepared on disk.

    `validation` examples are held out from the end of the TFDS split train. The split `test` is the
    TFDS split test, or the TFDS split validation if there is no other, as in ImageNet. The examples
    in `broken`, given for each TFDS split, are left out.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    validation: int
    broken: Mapping[str, Sequence[BrokenExample]] = dataclasses.field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.builder.data_dir)

    @property
    def num_classes(self) -> int:
        return self.builder.info.features["label"].num_classes

    @property
    def class_names(self) -> list[str]:
        return self.builder.info.features["label"].names

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return self.builder.info.features["image"].shape

    def tfds_range(self, split: str) -> tuple[str, int, int]:
        """Returns the TFDS split that contains `split`, and the start and end in that split."""
        check_choice(split, ("train", "validation", "test"), "split")
        splits = self.builder.info.splits
        if split == "test":
            tfds_split = "test" if "test" in splits else "validation"
            return tfds_split, 0, splits[tfds_split].num_examples
        end = splits["train"].num_examples
        cut = end - self.validation
        return ("train", 0, cut) if split == "train" else ("train", cut, end)

    def num_examples(self, split: str) -> int:
        _, start, stop = self.tfds_range(split)
        return stop - start - len(self._broken_names(split))

    def _broken_names(self, split: str) -> list[str]:
        """Returns the names of the broken examples in `train`, `validation` or `test`."""
        tfds_split, start, stop = self.tfds_range(split)
        return [x.name for x in self.broken.get(tfds_split, ()) if start <= x.position < stop]

    def fits_in_memory(self) -> bool:
        height, width, channels = self.image_shape
        if height is None or width is None:
            return False
        train = self.builder.info.splits["train"].num_examples
        return train * height * width * channels < IN_MEMORY_BYTES

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        if self._broken_names(split):
            decoded = self.encoded(split).map(lambda x: (self.decode(x), x["label"]))
            return next(iter(decoded.batch(self.num_examples(split))))
        tfds_split, start, stop = self.tfds_range(split)
        return _decoded_arrays(self.builder, f"{tfds_split}[{start}:{stop}]")

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Returns encoded examples. The seed shuffles files, then examples within a buffer."""
        tfds_split, start, stop = self.tfds_range(split)
        broken_names = self._broken_names(split)
        read_config = tfds.ReadConfig(
            shuffle_seed=shuffle_seed,
            interleave_cycle_length=16,
            try_autocache=False,
            add_tfds_id=bool(broken_names),
        )
        examples = self.builder.as_dataset(
            f"{tfds_split}[{start}:{stop}]",
            shuffle_files=shuffle_seed is not None,
            read_config=read_config,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        if broken_names:
            examples = examples.filter(lambda x: tf.reduce_all(x["tfds_id"] != broken_names))
        if shuffle_seed is None:
            return examples
        return examples.shuffle(SHUFFLE_BUFFER, shuffle_seed, reshuffle_each_iteration=False)

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        return self.builder.info.features["image"].decode_example(example["image"])

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed; raises UserError if pictures are broken."""
        with contextlib.suppress(tf.errors.OpError):  # the files themselves may be damaged
            self.without_broken("stop")
        return (
            f"cannot read data set {self.name}: {_first_line(error)}; "
            f"delete {self.folder} to prepare it again"
        )

    def without_broken(self, on_broken: str) -> "TfdsDataset":
        """Checks all pictures and returns the data set without the broken ones.

        Raises UserError with `on_broken` stop if there are any; prints a warning with skip.
        """
        tfds_splits = [self.tfds_range(split)[0] for split in ("train", "test")]
        broken = find_broken(self.builder, tfds_splits)
        errors = {x.name: x.error for split in tfds_splits for x in broken[split]}
        if errors:
            count = sum(self.builder.info.splits[split].num_examples for split in tfds_splits)
            raise_or_warn(f"{count} examples of {self.name} in {self.folder}", errors, on_broken)
        return dataclasses.replace(self, broken=broken)


@functools.cache
def open_dataset(
    name: str, data_dir: str | None = None, validation: int = 0, on_broken: str = "stop"
) -> Dataset:
    """Opens a classification data set by name.

    name        a TFDS data set, which is prepared first if it is missing, or `folder:PATH` for a
                folder of pictures PATH/SPLIT/CLASS/PICTURE with the splits `train` and `test`
    data_dir    the folder of TFDS data sets; by default that of TFDS
    validation  the number of examples that are held out from the end of train
    on_broken   what happens if pictures cannot be read: stop, or skip them. A folder is always
                checked. A TFDS data set is checked first only with skip, once, which takes as long
                as reading it once.

    Raises UserError for an unknown name, for a data set without images and labels, for one that
    cannot be downloaded here, and for a `validation` that leaves no training examples.
    """
    check_choice(on_broken, ON_BROKEN, "data.on_broken")
    dataset: Dataset
    if name.startswith(FOLDER_PREFIX):
        root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        dataset = open_image_folder(name, root, validation, on_broken)
    else:
        dataset = TfdsDataset(name, _open_builder(name, data_dir), validation)
        if on_broken == "skip":
            dataset = dataset.without_broken(on_broken)
    train = dataset.num_examples("train") + validation
    if not 0 <= validation < train:
        raise UserError(
            f"validation must be 0 to {train - 1} of the {train} training examples of {name}, "
            f"got {validation}"
        )
    return dataset


def _open_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Returns the TFDS builder of a classification data set, prepared."""
    builder = _create_builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(
            f"data set {name!r} is not for image classification: its features are "
            f"{', '.join(sorted(features))}"
        )
    return builder if builder.data_path.exists() else _prepare(name, data_dir)


def _create_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    check_choice(name.split(":")[0].split("/")[0], tfds.list_builders(), "data set")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise UserError(f"cannot open data set {name!r}: {_first_line(error)}") from error


def _prepare(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Prepares a data set, or waits while another process prepares it; returns its builder."""
    builder = _create_builder(name, data_dir)
    try:
        with locked(Path(builder.data_dir).parents[1] / f".{builder.name}.lock"):
            # A builder reads what is on disk when it is created, so create it with the lock held.
            builder = _create_builder(name, data_dir)
            if not builder.data_path.exists():
                _download_and_prepare(name, builder)
        return builder
    except UserError:
        raise
    except AssertionError as error:  # TFDS raises it if a data set needs a manual download
        raise UserError(
            f"{name} must be downloaded manually: {' '.join(str(error).split())}"
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
        raise UserError(f"cannot download {name}: {url} cannot be reached; check the connection")
    builder.download_and_prepare()


@functools.cache  # the runs of one process share the arrays
def _decoded_arrays(
    builder: tfds.core.DatasetBuilder, tfds_slice: str
) -> tuple[tf.Tensor, tf.Tensor]:
    examples = builder.as_dataset(split=tfds_slice, batch_size=-1, shuffle_files=False)
    return examples["image"], examples["label"]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
