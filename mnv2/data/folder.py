"""A folder of pictures as a data set: PATH/SPLIT/CLASS/PICTURE, with the splits train and test.

Every file is decoded once before it is used, so that one that cannot be is named at the start and
not hours later. What was found is remembered, by size and time of change.
"""

import dataclasses
import io
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image

from mnv2.data.broken import complain, error_in, line, memory
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import write_text
from mnv2.runtime.throughput import Progress

SPLITS = ("train", "test")


class Found(NamedTuple):
    """What a file turned out to be."""

    orientation: int = 1  # EXIF's, 1 to 8: how the camera was held
    error: str | None = None  # why it cannot be decoded


@dataclasses.dataclass(frozen=True, eq=False)
class Folder:
    """Pictures that can be read, in an order that mixes the classes and never changes.

    `validation` of them are held out from the end of train.
    """

    name: str
    root: Path
    class_names: list[str]
    pictures: dict[str, list[tuple[str, int]]]  # of each split: path under root, EXIF orientation
    validation: int

    @property
    def place(self) -> Path:
        return self.root

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        return None, None, 3

    def num_examples(self, split: str) -> int:
        return len(self._pictures(split))

    def fits_in_memory(self) -> bool:
        return False

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        raise UserError(f"pictures of {self.name} differ in size")

    def encoded(self, split: str, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Examples that are not read yet, in an order that `shuffle_seed` sets."""
        pictures = self._pictures(split)
        order = np.arange(len(pictures))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        labels = {name: label for label, name in enumerate(self.class_names)}
        chosen = [pictures[i] for i in order]
        return tf.data.Dataset.from_tensor_slices(
            {
                "path": [os.fspath(self.root / path) for path, _ in chosen],
                "label": np.array([labels[Path(path).parts[1]] for path, _ in chosen], np.int64),
                "orientation": np.array([orientation for _, orientation in chosen], np.int32),
            }
        )

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        """The picture of an example, upright: h w 3, uint8."""
        return upright(decode(tf.io.read_file(example["path"])), example["orientation"])

    def explain(self, error: Exception) -> str:
        """Why reading has failed, in one line."""
        files = [self.root / path for split in SPLITS for path, _ in self.pictures[split]]
        broken = [
            f"{file} ({found.error})"
            for file, found in zip(files, _examined(files), strict=True)
            if found.error
        ]
        return f"broken picture {broken[0]}: repair or remove it" if broken else line(str(error))

    def _pictures(self, split: str) -> list[tuple[str, int]]:
        check_choice(split, ("train", "validation", "test"), "split")
        if split == "test":
            return self.pictures["test"]
        cut = len(self.pictures["train"]) - self.validation
        return self.pictures["train"][:cut] if split == "train" else self.pictures["train"][cut:]


def open_folder(name: str, root: Path, validation: int, on_broken: str) -> Folder:
    """Looks through the pictures in `root`.

    Raises UserError where a split is missing, and, with `on_broken` stop, if a picture cannot be
    read; with skip such are named, and left out.
    """
    files: list[Path] = []
    for split in SPLITS:
        here = sorted(path for path in (root / split).glob("*/[!.]*") if path.is_file())
        if not here:
            raise UserError(f"no pictures in {root}: expected {root}/{split}/CLASS/PICTURE.jpg")
        files.extend(here)
    looked_at = _look_through(root, files)
    broken = {path: found.error for path, found in looked_at.items() if found.error}
    if broken:
        complain(f"{len(files)} files in {root}", broken, on_broken)
    pictures: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for path, found in looked_at.items():
        if not found.error:
            pictures[Path(path).parts[0]].append((path, found.orientation))
    for split in SPLITS:
        np.random.default_rng(0).shuffle(pictures[split])
    names = sorted({Path(path).parts[1] for path in looked_at})
    return Folder(name, root, names, pictures, validation)


def _look_through(root: Path, files: Sequence[Path]) -> dict[str, Found]:
    """What each file is, by its path under `root`; from memory where it has not changed."""
    place = memory(os.fspath(root.resolve()))
    known = json.loads(place.read_text()) if place.exists() else {}
    # What a file was when it was looked at: size, time of change.
    stamps = {path: [(stat := path.stat()).st_size, stat.st_mtime_ns] for path in files}
    names = {path: path.relative_to(root).as_posix() for path in files}
    unknown = [path for path in files if known.get(names[path], [None, None])[:2] != stamps[path]]
    if not unknown:
        return {names[path]: Found(*known[names[path]][2:]) for path in files}
    progress = Progress("looking through pictures", len(unknown), 1)
    for number, (path, found) in enumerate(zip(unknown, _examined(unknown), strict=True), 1):
        known[names[path]] = [*stamps[path], *found]
        if number % 100 == 0:
            progress.say(f"{number}/{len(unknown)}")
    progress.clear()
    known = {names[path]: known[names[path]] for path in files}
    write_text(place, json.dumps(known))
    return {name: Found(*entry[2:]) for name, entry in known.items()}


def _examined(files: Sequence[Path]) -> Iterator[Found]:
    """What each file is; decoded on all cores."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(examine, files)


def examine(path: Path) -> Found:
    """Decodes a file as training will."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Found(error=line(str(error)))
    if error_message := error_in(content, decode):
        return Found(error=error_message)
    return Found(_orientation(content))


def _orientation(content: bytes) -> int:
    """EXIF's, 1 where there is none or nonsense."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow may fail, in many ways, where TensorFlow has decoded
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """A JPEG, PNG, GIF (its first frame) or BMP as h w 3, uint8, whatever it is called.

    Gray is repeated, CMYK converted, transparency dropped, and 16 bits become 8.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """A picture (h w c) turned as its camera was held, by EXIF's orientation, 1 to 8."""
    turned = (
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        lambda: tf.transpose(image, (1, 0, 2)),
        lambda: tf.transpose(image, (1, 0, 2))[:, ::-1],
        lambda: tf.transpose(image, (1, 0, 2))[::-1, ::-1],
        lambda: tf.transpose(image, (1, 0, 2))[::-1],
    )
    return tf.switch_case(orientation - 1, turned)
