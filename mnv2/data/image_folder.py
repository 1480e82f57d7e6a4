"""A folder of pictures as a data set: PATH/SPLIT/CLASS/PICTURE, or PATH/CLASS/PICTURE.

Every file is decoded once before the data set is used, so that a broken file is reported at the
start and not hours later. The results are cached by the size and modification time of each file.
"""

import dataclasses
import difflib
import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from mnv2.data import decoding
from mnv2.data.broken import cache_name, raise_or_warn
from mnv2.data.folder_tree import Pictures, find_pictures
from mnv2.data.splits import TEST_SHARE, Part, bounds_of, check_split, divide
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_cache, write_cache
from mnv2.runtime.terminal import StatusLine, note

DECODER = 2  # a new number discards the cached results of an older decoder


class Check(NamedTuple):
    """The result of decoding a file."""

    orientation: int = 1  # as decoding.decode needs it
    error: str | None = None  # why the file cannot be decoded


class Picture(NamedTuple):
    """A readable picture."""

    file: Path
    orientation: int
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder:
    """The readable pictures of a folder, in a fixed order that mixes the classes.

    `pictures` has those of each split of the folder, and `parts` says what of them are train,
    validation and test. `validation` pictures are held out from the end of train.
    """

    name: str
    root: Path
    class_names: list[str]
    pictures: dict[str, list[Picture]]
    parts: dict[str, Part]
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

    @property
    def splits(self) -> list[str]:
        return list(self.parts)

    def num_examples(self, split: str) -> int:
        return len(self._pictures(split))

    def fits_in_memory(self) -> bool:
        return False

    def arrays(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        raise UserError(f"pictures of {self.name} differ in size")

    def encoded(
        self, split: str, shuffle_seed: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Returns examples with the paths of their pictures, shuffled if `shuffle_seed` is given.

        No file is read before `decode`.
        """
        pictures = self._pictures(split)
        order = np.arange(len(pictures))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        chosen = [pictures[i] for i in order[slice(*bounds_of(part, len(order)))]]
        return tf.data.Dataset.from_tensor_slices(
            {
                "path": [os.fsencode(picture.file) for picture in chosen],
                "label": np.array([picture.label for picture in chosen], np.int64),
                "orientation": np.array([picture.orientation for picture in chosen], np.int32),
            }
        )

    def decode(self, example: dict[str, tf.Tensor]) -> tf.Tensor:
        """Reads and decodes the picture of an example, upright: h w 3, uint8."""
        return decoding.decode(tf.io.read_file(example["path"]), example["orientation"])

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed."""
        files = [picture.file for pictures in self.pictures.values() for picture in pictures]
        for file, check in zip(files, _check_all(files), strict=True):
            if check.error:
                return f"broken picture {file} ({check.error}): repair or remove it"
        return decoding.short_message(str(error))

    def _pictures(self, split: str) -> list[Picture]:
        check_split(self.name, split, self.parts)
        part = self.parts[split]
        return self.pictures[part.split][part.start : part.stop]


def open_image_folder(name: str, root: Path, validation: int, on_broken: str) -> ImageFolder:
    """Checks all pictures in `root` and returns them as a data set.

    Raises UserError if there are no pictures, or if training could not learn every class. If a
    picture cannot be read, raises UserError with `on_broken` stop; with `on_broken` skip, prints a
    warning and leaves the picture out.
    """
    found = find_pictures(root)
    files = [
        file for classes in found.values() for of_class in classes.values() for file in of_class
    ]
    checks = _check_changed(root, files)
    broken = {
        file.relative_to(root).as_posix(): check.error
        for file, check in checks.items()
        if check.error
    }
    if broken:
        raise_or_warn(f"{len(files)} files in {root}", broken, on_broken)
    readable = {
        split: {
            label: [file for file in of_class if not checks[file].error]
            for label, of_class in classes.items()
        }
        for split, classes in found.items()
    }
    class_names = _class_names(root, readable)
    if list(readable) == ["train"]:
        readable = _hold_out(name, root, readable["train"])
    pictures = {}
    for split, classes in readable.items():
        pictures[split] = [
            Picture(file, checks[file].orientation, class_names.index(label))
            for label, of_class in sorted(classes.items())
            for file in of_class
        ]
        np.random.default_rng(0).shuffle(pictures[split])
    counts = {split: len(of_split) for split, of_split in pictures.items()}
    parts = divide(name, counts, validation)
    if validation:
        trained = {picture.label for picture in pictures["train"][: parts["train"].stop]}
        if lost := [label for i, label in enumerate(class_names) if i not in trained]:
            raise UserError(
                f"data.validation {validation} holds out every training picture of {_quoted(lost)} "
                f"in {root}: lower it, or add pictures"
            )
    return ImageFolder(name, root, class_names, pictures, parts, validation)


def _class_names(root: Path, readable: Pictures) -> list[str]:
    """Returns the classes that are trained; without train, those of the other splits.

    Raises UserError if a class has no readable picture to learn from, or if there is only one.
    """
    train = readable.get("train")
    if train is None:
        names = sorted({label for classes in readable.values() for label in classes})
    else:
        names = sorted(train)
        if empty := [label for label in names if not train[label]]:
            raise UserError(
                f"no picture of {_quoted(empty)} for training in {root} can be read: repair one, "
                "or remove the class"
            )
    if len(names) < 2:
        raise UserError(f"{root} has only the class {names[0]!r}: a classifier needs two")
    for split, classes in readable.items():
        if unknown := sorted(set(classes) - set(names)):
            hints = [f"{label!r}{_nearest(label, names)}" for label in unknown]
            raise UserError(
                f"the {split} split of {root} has classes that train lacks: {', '.join(hints)}; "
                "rename them, remove them, or add training pictures"
            )
        if missing := [label for label in names if not classes.get(label)]:
            note(f"the {split} split of {root} has no pictures of {_quoted(missing)}")
    return names


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _nearest(label: str, names: Collection[str]) -> str:
    """Returns a hint to the most similar of the names; nothing if none is similar."""
    plain = {unicodedata.normalize("NFC", name).casefold(): name for name in names}
    wanted = unicodedata.normalize("NFC", label).casefold()
    nearest = difflib.get_close_matches(wanted, plain, n=1)
    return f" (did you mean {plain[nearest[0]]!r}?)" if nearest else ""


def _hold_out(name: str, root: Path, train: Mapping[str, list[Path]]) -> Pictures:
    """Splits pictures into train and test. Test gets a tenth of each class.

    A hash of its path chooses a picture, so that a new picture hardly changes the choice.
    """
    kept: dict[str, list[Path]] = {}
    held: dict[str, list[Path]] = {}
    for label, files in train.items():
        by_hash = sorted(
            files,
            key=lambda file: hashlib.sha256(os.fsencode(file.relative_to(root))).digest(),
        )
        count = min(max(1, len(files) // TEST_SHARE), len(files) - 1)  # one remains for training
        held[label] = sorted(by_hash[:count])
        kept[label] = sorted(by_hash[count:])
    total, count = (sum(map(len, classes.values())) for classes in (train, held))
    if count == 0:
        raise UserError(f"{root} has one picture per class: nothing remains to test with")
    note(
        f"{name} has no split test: a tenth of each class, {count:,} of its {total:,} pictures, is "
        "held out as test"
    )
    return {"train": kept, "test": held}


def _check_changed(root: Path, files: Sequence[Path]) -> dict[Path, Check]:
    """Returns the check of each file; decodes only files that are new or changed."""
    cache = cache_name(f"{os.fspath(root.resolve())} {DECODER}")
    # path under root -> size and modification time when the file was checked, and its check
    cached = read_cache(cache)
    stamps = {file: _stamp(file) for file in files}
    paths = {file: file.relative_to(root).as_posix() for file in files}
    changed = [file for file in files if cached.get(paths[file], [None, None])[:2] != stamps[file]]
    if changed:
        status = StatusLine("checking pictures")
        for number, (file, check) in enumerate(zip(changed, _check_all(changed), strict=True), 1):
            cached[paths[file]] = [*stamps[file], *check]
            if number % 100 == 0:
                status.say(f"{number}/{len(changed)}")
        status.clear()
        cached = {paths[file]: cached[paths[file]] for file in files}
        write_cache(cache, cached)
    return {file: Check(*cached[paths[file]][2:]) for file in files}


def _stamp(file: Path) -> list[int]:
    """Returns the size and modification time of a file; -1 for a link to nothing."""
    try:
        stat = file.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def _check_all(files: Sequence[Path]) -> Iterator[Check]:
    """Checks files on all cores."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(check_file, files)


def check_file(path: Path) -> Check:
    """Decodes a file as training does."""
    try:
        content = path.read_bytes()
        decoding.decode_picture(content)
    except OSError as error:
        return Check(error=error.strerror)
    except UserError as error:
        return Check(error=str(error))
    return Check(decoding.orientation(content))
