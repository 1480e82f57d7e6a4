"""A folder of pictures as a data set: PATH/SPLIT/CLASS/PICTURE, with the splits train and test.

Every file is decoded once before the data set is used, so that a broken file is reported at the
start and not hours later. The results are cached by the size and modification time of each file.
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

from mnv2.data.broken import cache_path, decoding_error, raise_or_warn, short_message
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import write_text
from mnv2.runtime.terminal import StatusLine

SPLITS = ("train", "test")


class Check(NamedTuple):
    """The result of decoding a file."""

    orientation: int = 1  # the EXIF orientation, 1 to 8: how the camera was held
    error: str | None = None  # why the file cannot be decoded


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
    """The readable pictures of a folder, in a fixed order that mixes the classes.

    `validation` pictures are held out from the end of train. `pictures` has, for each split, the
    path under `root` and the EXIF orientation of each picture.
    """

    name: str
    root: Path
    class_names: list[str]
    pictures: dict[str, list[tuple[str, int]]]
    validation: int

    @property
    def folder(self) -> Path:
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
        """Returns examples with the paths of their pictures, shuffled if `shuffle_seed` is given.

        No file is read before `decode`.
        """
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
        """Reads and decodes the picture of an example, upright: h w 3, uint8."""
        return upright(decode(tf.io.read_file(example["path"])), example["orientation"])

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed."""
        files = [self.root / path for split in SPLITS for path, _ in self.pictures[split]]
        broken = [
            f"{file} ({check.error})"
            for file, check in zip(files, _check_all(files), strict=True)
            if check.error
        ]
        if broken:
            return f"broken picture {broken[0]}: repair or remove it"
        return short_message(str(error))

    def _pictures(self, split: str) -> list[tuple[str, int]]:
        check_choice(split, ("train", "validation", "test"), "split")
        if split == "test":
            return self.pictures["test"]
        cut = len(self.pictures["train"]) - self.validation
        return self.pictures["train"][:cut] if split == "train" else self.pictures["train"][cut:]


def open_image_folder(name: str, root: Path, validation: int, on_broken: str) -> ImageFolder:
    """Checks all pictures in `root` and returns them as a data set.

    Raises UserError if a split is missing. If a picture cannot be read, raises UserError with
    `on_broken` stop; with `on_broken` skip, prints a warning and leaves the picture out.
    """
    files: list[Path] = []
    for split in SPLITS:
        in_split = sorted(path for path in (root / split).glob("*/[!.]*") if path.is_file())
        if not in_split:
            raise UserError(f"no pictures in {root}: expected {root}/{split}/CLASS/PICTURE.jpg")
        files.extend(in_split)
    checks = _check_changed(root, files)
    broken = {path: check.error for path, check in checks.items() if check.error}
    if broken:
        raise_or_warn(f"{len(files)} files in {root}", broken, on_broken)
    pictures: dict[str, list[tuple[str, int]]] = {split: [] for split in SPLITS}
    for path, check in checks.items():
        if not check.error:
            pictures[Path(path).parts[0]].append((path, check.orientation))
    for split in SPLITS:
        np.random.default_rng(0).shuffle(pictures[split])
    class_names = sorted({Path(path).parts[1] for path in checks})
    return ImageFolder(name, root, class_names, pictures, validation)


def _check_changed(root: Path, files: Sequence[Path]) -> dict[str, Check]:
    """Returns the check of each file by its path under `root`; decodes new and changed files."""
    cache = cache_path(os.fspath(root.resolve()))
    # path under root -> size and modification time when the file was checked, and its check
    cached = json.loads(cache.read_text()) if cache.exists() else {}
    stamps = {file: [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in files}
    paths = {file: file.relative_to(root).as_posix() for file in files}
    changed = [file for file in files if cached.get(paths[file], [None, None])[:2] != stamps[file]]
    if not changed:
        return {paths[file]: Check(*cached[paths[file]][2:]) for file in files}
    status = StatusLine("checking pictures")
    for number, (file, check) in enumerate(zip(changed, _check_all(changed), strict=True), 1):
        cached[paths[file]] = [*stamps[file], *check]
        if number % 100 == 0:
            status.say(f"{number}/{len(changed)}")
    status.clear()
    cached = {paths[file]: cached[paths[file]] for file in files}
    write_text(cache, json.dumps(cached))
    return {path: Check(*entry[2:]) for path, entry in cached.items()}


def _check_all(files: Sequence[Path]) -> Iterator[Check]:
    """Checks files on all cores."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(check_file, files)


def check_file(path: Path) -> Check:
    """Decodes a file as training does."""
    try:
        content = path.read_bytes()
    except OSError as error:
        return Check(error=short_message(str(error)))
    if error_message := decoding_error(content, decode):
        return Check(error=error_message)
    return Check(_orientation(content))


def _orientation(content: bytes) -> int:
    """Returns the EXIF orientation of a picture, or 1 if it has none or an invalid one."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow can fail, in many ways, on pictures that TensorFlow decodes
        return 1
    return orientation if orientation in range(1, 9) else 1


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF (its first frame) or BMP to h w 3, uint8; ignores the file's name.

    Grayscale is repeated, CMYK is converted, transparency is dropped, and 16 bits become 8.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns an image (h w c) upright, given its EXIF orientation, 1 to 8."""
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
