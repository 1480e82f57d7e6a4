"""A folder of pictures as a data set: PATH/SPLIT/CLASS/PICTURE, or PATH/CLASS/PICTURE.

Every file is decoded once before the data set is used, so that a broken file is reported at the
start and not hours later. The results are cached by the size and modification time of each file. A
large folder is checked first only if broken pictures are to be skipped: it would take an hour.
"""

import dataclasses
import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from mnv2.data import decoding
from mnv2.data.base import Dataset, decoded
from mnv2.data.folder_tree import Pictures, find_pictures
from mnv2.data.splits import TEST_SHARE, Part, bounds_of, check_split, divide
from mnv2.preprocess.host import View
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_cache, to_json, write_cache
from mnv2.runtime.terminal import StatusLine, first_few, note, printable, warn

DECODER = 4  # a new number discards the cached results of an older decoder
CHECKED_FIRST = 20_000  # files, up to which all are checked although broken ones stop a run


class Picture(NamedTuple):
    """A picture, readable as far as it was checked."""

    file: Path
    label: int


@dataclasses.dataclass(frozen=True, eq=False)
class ImageFolder(Dataset):
    """The readable pictures of a folder, in a fixed order that mixes the classes.

    `pictures` has those of each split of the folder, and `parts` says what of them are train,
    validation and test. `validation` pictures are held out from the end of train.
    """

    name: str
    folder: Path
    class_names: list[str]
    pictures: dict[str, list[Picture]]
    parts: dict[str, Part]
    validation: int
    image_shape: tuple[int | None, int | None, int] = (None, None, 3)
    _tables: dict[str, dict[str, tf.Tensor]] = dataclasses.field(default_factory=dict)

    def num_examples(self, split: str) -> int:
        return len(self._pictures(split))

    def encoded(
        self, split: str, shuffle_seed: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> tf.data.Dataset:
        """Returns examples with the paths of their pictures, shuffled if `shuffle_seed` is given.

        No file is read before `decode`.
        """
        count = self.num_examples(split)
        order = np.arange(count)
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        own = order[slice(*bounds_of(part, count))]
        return tf.data.Dataset.from_tensor_slices(
            {name: tf.gather(values, own) for name, values in self.table(split).items()}
        )

    def table(self, split: str) -> dict[str, tf.Tensor]:
        """Returns all encoded examples, as `encoded` has them without a seed."""
        if split not in self._tables:
            pictures = self._pictures(split)
            self._tables[split] = {
                "path": tf.constant([os.fsencode(picture.file) for picture in pictures]),
                "label": tf.constant([picture.label for picture in pictures], tf.int64),
                "index": tf.range(len(pictures)),
            }
        return self._tables[split]

    def decode(
        self, example: dict[str, tf.Tensor], view: View | None = None, *seed: Any
    ) -> tf.Tensor:
        """Reads and decodes the picture of an example, upright: h w 3, uint8, or as in `view`."""
        return decoded(_read, example["path"], view, *seed)

    def explain(self, error: Exception) -> str:
        """Explains in one line why reading failed: as `_read` did, whose error TensorFlow wraps."""
        said = str(error)
        return decoding.short_message(said.partition("UserError: ")[2] or said)

    def _pictures(self, split: str) -> list[Picture]:
        check_split(self.name, split, self.parts)
        part = self.parts[split]
        return self.pictures[part.split][part.start : part.stop]


def _read(path: bytes) -> np.ndarray:
    """Reads a picture of a folder. Raises UserError that names the file."""
    file = Path(os.fsdecode(path))
    try:
        return decoding.read_picture(file)
    except UserError as error:
        raise UserError(
            f"broken picture {printable(file)} ({error}): repair or remove it, or set "
            "data.on_broken to skip"
        ) from None


def open_image_folder(name: str, root: Path, validation: int, on_broken: str) -> ImageFolder:
    """Checks the pictures in `root` and returns them as a data set.

    Raises UserError if there are no pictures, or if training could not learn every class. If a
    picture cannot be read, raises UserError with `on_broken` stop; with `on_broken` skip, prints a
    warning and leaves the picture out. With stop, more than CHECKED_FIRST pictures are not checked
    here, after a note, but when they are read.
    """
    found = find_pictures(root)
    count = sum(len(of_class) for classes in found.values() for of_class in classes.values())
    if on_broken == "stop" and count > CHECKED_FIRST:
        note(f"the {count:,} pictures of {name} are checked as they are read, and not before")
        broken: dict[Path, str] = {}
    else:
        broken = _find_broken(root, found, count)
    if broken:
        named = first_few([f"{x.relative_to(root)} ({why})" for x, why in broken.items()], 10)
        problem = f"{len(broken)} of the {count} files in {root} cannot be read as pictures"
        if on_broken == "stop":
            raise UserError(
                f"{problem}: {named}; repair or remove them, or set data.on_broken to skip"
            )
        warn(f"{problem} and are skipped: {named}")
    readable = {
        split: {
            label: [file for file in of_class if file not in broken]
            for label, of_class in classes.items()
        }
        for split, classes in found.items()
    }
    class_names = _class_names(root, readable)
    if list(readable) == ["train"]:
        readable = _hold_out(name, root, readable["train"])
    pictures = {}
    numbers = {label: number for number, label in enumerate(class_names)}
    for split, classes in readable.items():
        pictures[split] = [
            Picture(file, numbers[label])
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
            raise UserError(
                f"the {split} split of {root} has classes that train lacks: {_quoted(unknown)}; "
                "rename them, remove them, or add training pictures"
            )
        if missing := [label for label in names if not classes.get(label)]:
            note(f"the {split} split of {root} has no pictures of {_quoted(missing)}")
    return names


def _quoted(names: Sequence[str]) -> str:
    return first_few(map(repr, names), 10)


def _hold_out(name: str, root: Path, train: Mapping[str, list[Path]]) -> Pictures:
    """Splits pictures into train and test. Test gets a tenth of each class.

    A hash of its path chooses a picture, so that a new picture hardly changes the choice.
    """
    kept: dict[str, list[Path]] = {}
    held_out: dict[str, list[Path]] = {}
    for label, files in train.items():
        by_hash = sorted(
            files, key=lambda file: hashlib.sha256(os.fsencode(file.relative_to(root))).digest()
        )
        count = min(max(1, len(files) // TEST_SHARE), len(files) - 1)  # one remains for training
        held_out[label] = sorted(by_hash[:count])
        kept[label] = sorted(by_hash[count:])
    total, count = (sum(map(len, classes.values())) for classes in (train, held_out))
    if count == 0:
        raise UserError(f"{root} has one picture per class: nothing remains to test with")
    note(
        f"{name} has no split test: a tenth of each class, {count:,} of its {total:,} pictures, is "
        "held out as test"
    )
    return {"train": kept, "test": held_out}


def _find_broken(root: Path, found: Pictures, count: int) -> dict[Path, str]:
    """Decodes the files that are new or changed; returns the broken ones, and why each is.

    What is found of a class is cached when the class is done: an interruption costs one class.
    """
    status = StatusLine("checking pictures")
    broken: dict[Path, str] = {}
    done = 0
    with ThreadPoolExecutor() as pool:
        for split, classes in found.items():
            for label, files in classes.items():
                key = f"{root.resolve()}\n{split}\n{label}\n{DECODER}"
                cache = f"pictures/{hashlib.sha256(os.fsencode(key)).hexdigest()[:16]}.json"
                errors = _errors(root, files, cache, pool)
                broken |= {file: e for file, e in zip(files, errors, strict=True) if e}
                done += len(files)
                status.say(f"{done}/{count}, {len(broken)} broken")
    status.clear()
    return broken


def _errors(root: Path, files: Sequence[Path], cache: str, pool: Executor) -> list[str | None]:
    """Returns why each file cannot be decoded, or None, from a cache as far as possible."""
    # path under root -> size and time of change when the file was checked, and the error
    cached = read_cache(cache)
    stamps = {file.relative_to(root).as_posix(): _stamp(file) for file in files}
    changed = {
        path: file
        for file, (path, stamp) in zip(files, stamps.items(), strict=True)
        if cached.get(path, [])[:2] != stamp
    }
    if changed:
        found = zip(changed, pool.map(check_file, changed.values()), strict=True)
        cached |= {path: [*stamps[path], error] for path, error in found}
        kept = to_json({path: cached[path] for path in stamps})
        write_cache(cache, lambda path: path.write_text(kept, encoding="utf-8"))
    return [cached[path][2] for path in stamps]


def _stamp(path: Path) -> list[int]:
    """Returns the size and modification time of a file; -1 for a link to nothing."""
    try:
        stat = path.stat()
    except OSError:
        return [-1, -1]
    return [stat.st_size, stat.st_mtime_ns]


def check_file(path: Path) -> str | None:
    """Decodes a file as training does; returns why it cannot be decoded, or None."""
    try:
        decoding.read_picture(path)
    except UserError as error:
        return str(error)
    return None
