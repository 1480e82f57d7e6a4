"""Data sets by name: what they are called, where they come from, how they are split."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import fashion_mnist
from mnv2.data.broken import ON_BROKEN, Broken, complain, look_through
from mnv2.data.download import reachable
from mnv2.data.folder import open_folder
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import locked

# Sets whose decoded images are smaller than this are kept in memory as one array.
IN_MEMORY_BYTES = 1 << 30

# Examples in the buffer that shuffles a set too large for memory. ImageNet: about 1.8 GB.
SHUFFLE_BUFFER = 16 * 1024

FOLDER_PREFIX = "folder:"


@runtime_checkable
class Dataset(Protocol):
    """A classification data set with the splits `train`, `validation` and `test`."""

    @property
    def name(self) -> str: ...

    @property
    def validation(self) -> int:
        """How many examples are held out from the end of train."""

    @property
    def place(self) -> Path:
        """The folder in which it lies."""

    @property
    def num_classes(self) -> int: ...

    @property
    def class_names(self) -> list[str]: ...

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """(height, width, channels); None where it differs from image to image."""

    def num_examples(self, split: str) -> int: ...

    def fits_in_memory(self) -> bool: ...

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        """All images (n h w c, uint8) and labels (n, int64), decoded once; for small sets."""

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Examples with `label`, their images still encoded, in an order that the seed sets."""

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        """The image of an encoded example: h w c, uint8."""

    def explain(self, error: Exception) -> str:
        """Why reading has failed, in one line."""


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A data set of TFDS's, prepared on disk.

    `validation` examples are held out from the end of its train split; `test` is its test split,
    or its validation split where that is all there is, as in ImageNet. `broken` are left out, by
    the names of TFDS's splits.
    """

    name: str
    builder: tfds.core.DatasetBuilder
    validation: int
    broken: Mapping[str, Sequence[Broken]] = dataclasses.field(default_factory=dict)

    @property
    def place(self) -> Path:
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
        return stop - start - len(self._left_out(split))

    def _left_out(self, split: str) -> list[str]:
        """The names of what is broken in `train`, `validation` or `test`."""
        whole, start, stop = self.split(split)
        return [x.name for x in self.broken.get(whole, ()) if start <= x.position < stop]

    def fits_in_memory(self) -> bool:
        height, width, channels = self.image_shape
        if height is None or width is None:
            return False
        train = self.builder.info.splits["train"].num_examples
        return train * height * width * channels < IN_MEMORY_BYTES

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        if self._left_out(split):
            decoded = self.encoded(split).map(lambda x: (self.decode(x), x["label"]))
            return next(iter(decoded.batch(self.num_examples(split))))
        whole, start, stop = self.split(split)
        return _decoded_arrays(self.builder, f"{whole}[{start}:{stop}]")

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Examples, with files and then a buffer's worth of them in an order that the seed sets."""
        whole, start, stop = self.split(split)
        left_out = self._left_out(split)
        read_config = tfds.ReadConfig(
            shuffle_seed=shuffle_seed,
            interleave_cycle_length=16,
            try_autocache=False,
            add_tfds_id=bool(left_out),
        )
        examples = self.builder.as_dataset(
            f"{whole}[{start}:{stop}]",
            shuffle_files=shuffle_seed is not None,
            read_config=read_config,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        if left_out:
            examples = examples.filter(lambda x: tf.reduce_all(x["tfds_id"] != left_out))
        if shuffle_seed is None:
            return examples
        return examples.shuffle(SHUFFLE_BUFFER, shuffle_seed, reshuffle_each_iteration=False)

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        return self.builder.info.features["image"].decode_example(example["image"])

    def explain(self, error: Exception) -> str:
        with contextlib.suppress(tf.errors.OpError):  # the files themselves may be damaged
            self.without_broken("stop")
        return (
            f"data set {self.name} cannot be read, delete {self.place} to have it "
            f"prepared again: {_first_line(error)}"
        )

    def without_broken(self, on_broken: str) -> "Prepared":
        """Looks through all pictures. Raises UserError with `on_broken` stop if some are broken."""
        wholes = [self.split(split)[0] for split in ("train", "test")]
        found = look_through(self.builder, wholes)
        broken = {x.name: x.error for whole in wholes for x in found[whole]}
        if broken:
            count = sum(self.builder.info.splits[whole].num_examples for whole in wholes)
            complain(f"{count} examples of {self.name} in {self.place}", broken, on_broken)
        return dataclasses.replace(self, broken=found)


@functools.cache
def open_dataset(
    name: str, data_dir: str | None = None, validation: int = 0, on_broken: str = "stop"
) -> Dataset:
    """Opens a TFDS classification set by name, preparing it first where it is missing.

    `folder:PATH` names a folder of pictures, PATH/SPLIT/CLASS/PICTURE, with the splits `train` and
    `test`. `on_broken` says what is done if pictures cannot be read: stop, or skip them. With skip
    TFDS's sets, too, are looked through once, which takes as long as to read them once.
    `validation` examples are held out from the end of train.

    Raises UserError for an unknown name, a set without images and labels, one that cannot be
    downloaded here, and a `validation` that leaves nothing to train on.
    """
    check_choice(on_broken, ON_BROKEN, "data.on_broken")
    dataset: Dataset
    if name.startswith(FOLDER_PREFIX):
        root = Path(name.removeprefix(FOLDER_PREFIX)).expanduser()
        dataset = open_folder(name, root, validation, on_broken)
    else:
        dataset = Prepared(name, _prepared(name, data_dir), validation)
        if on_broken == "skip":
            dataset = dataset.without_broken(on_broken)
    train = dataset.num_examples("train") + validation
    if not 0 <= validation < train:
        raise UserError(
            f"validation must be 0 to {train - 1} of the {train} training examples of {name}, "
            f"got {validation}"
        )
    return dataset


def _prepared(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    builder = _builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "num_classes"):
        raise UserError(f"data set {name!r} is not one for classification: {sorted(features)}")
    return builder if builder.data_path.exists() else _prepare(name, data_dir)


def _builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    check_choice(name.split(":")[0].split("/")[0], tfds.list_builders(), "data set")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except Exception as error:
        raise UserError(f"cannot open data set {name!r}: {_first_line(error)}") from error


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
