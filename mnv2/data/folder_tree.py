"""Finds the pictures in a folder, and which split and class each belongs to.

PATH/SPLIT/CLASS/PICTURE, or PATH/CLASS/PICTURE without splits. Folders below a class belong to it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import did_you_mean
from mnv2.runtime.terminal import first_few, note

FOLDER_PREFIX = "folder:"  # of the name of a data set
ON_BROKEN = ("stop", "skip")  # what to do about pictures that cannot be read

Pictures = dict[str, dict[str, list[Path]]]  # split -> class -> files

_SPLITS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
# Names of which it is unclear whether they are splits or classes.
_UNCLEAR = ("training", "training_set", "train_set", "testing", "test_set", "dev", "evaluation")
# What operating systems and programs leave behind, besides hidden files.
_SYSTEM = (
    "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "#recycle", "@recycle",
    "__macosx", "__pycache__", "$recycle.bin", "system volume information", "lost+found",
)  # fmt: skip
_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".avif", ".jp2", ".j2k", ".jpx", ".j2c", ".ppm", ".pgm", ".pbm", ".pnm",
    ".heic", ".heif", ".jxl",
)  # fmt: skip
_MAX_NAMED = 5
NO_CLASS = "in no folder of a class"


def find_pictures(root: Path) -> Pictures:
    """Returns the files of each class in each split that the folder has: train, validation, test.

    A folder of classes without splits has only train. Notes say what is left out.

    Raises UserError if there are no pictures, or if it is unclear what the folders mean.
    """
    expected = f"expected {root}/train/CLASS/PICTURE.jpg or {root}/CLASS/PICTURE.jpg"
    if not root.is_dir():
        raise UserError(f"no pictures in {root}{did_you_mean(root) or f': {expected}'}")
    entries = _entries(root)
    folders = {entry.name: Path(entry.path) for entry in entries if entry.is_dir()}
    if unclear := [name for name in folders if name.casefold() in _UNCLEAR]:
        raise UserError(
            f"{root} has a folder {unclear[0]!r}: if it is a split, call it train, val or test; "
            f"{expected}"
        )
    of_split: dict[str, Path] = {}
    for name, path in folders.items():
        split = _SPLITS.get(name.casefold())
        if split in of_split:
            raise UserError(f"{of_split[split]} and {path} are the same split: keep one of them")
        if split:
            of_split[split] = path
    others: list[Path] = []
    if of_split:
        outside = [path for path in folders.values() if path not in of_split.values()]
        _check_splits(root, of_split, outside)
        pictures = {split: _classes(path, others) for split, path in of_split.items()}
        _left_out(root, "no splits, which are called train, test, val", outside)
        loose = [Path(entry.path) for entry in entries if not entry.is_dir()]
        _left_out(root, NO_CLASS, [path for path in loose if _is_picture(path)])
    else:
        for path in folders.values():
            if any(x.name.casefold() in _SPLITS and x.is_dir() for x in _entries(path)):
                raise UserError(f"{root} has no splits, but {path} has: give folder:{path}")
        pictures = {"train": _classes(root, others)}
    for split in [split for split, classes in pictures.items() if not classes]:
        folder = of_split.get(split, root)
        if split == "train" or len(pictures) == 1:
            raise UserError(f"no pictures in {folder}: {expected}")
        note(f"{folder} has no folders of classes with pictures, and is not used")
        del pictures[split]
    _left_out(root, "no pictures", others)
    return pictures


def _check_splits(root: Path, of_split: Mapping[str, Path], outside: Sequence[Path]) -> None:
    """Raises UserError if the only split of a folder could be a class beside others."""
    (split, *more) = of_split.values()
    classes = [] if more else [path.name for path in outside if files_below(path)[0]]
    if classes:
        raise UserError(
            f"{root} has the folder {split.name!r}, which would be a split, and folders of "
            f"pictures beside it ({first_few(classes)}): if it is a class, give it another "
            "name; if it is a split, move them elsewhere"
        )


def _classes(folder: Path, others: list[Path]) -> dict[str, list[Path]]:
    """Returns the pictures of each class in a folder; appends files that are none to `others`."""
    classes: dict[str, list[Path]] = {}
    loose: list[Path] = []
    empty: list[Path] = []
    for entry in _entries(folder):
        path = Path(entry.path)
        if not entry.is_dir():
            (loose if _is_picture(path) else others).append(path)
            continue
        pictures, no_pictures = files_below(path)
        others.extend(no_pictures)
        if pictures:
            classes[entry.name] = pictures
        else:
            empty.append(path)
    _left_out(folder, NO_CLASS, loose)
    _left_out(folder, "folders without pictures, which are no classes", empty)
    return classes


def files_below(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the pictures in a folder and in the folders below, and the other files, sorted.

    Hidden files and those of the system are in neither.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    for inner in folders_below(folder):
        for file in (Path(entry.path) for entry in _entries(inner) if not entry.is_dir()):
            (pictures if _is_picture(file) else others).append(file)
    return sorted(pictures), sorted(others)


def folders_below(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """Yields a folder and all folders in it, at any depth and behind links; no loops.

    `above` has the folders that it is in.
    """
    if (resolved := folder.resolve()) not in above:
        yield folder
        for entry in _entries(folder):
            if entry.is_dir():
                yield from folders_below(Path(entry.path), (*above, resolved))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what is in a folder, sorted, without hidden files and those of the system."""
    try:
        with os.scandir(folder) as entries:
            seen = [x for x in entries if not x.name.startswith(".")]
    except OSError as error:
        raise UserError(f"cannot read folder {folder}: {error.strerror}") from None
    return sorted((x for x in seen if x.name.casefold() not in _SYSTEM), key=lambda x: x.name)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in _SUFFIXES


def _left_out(root: Path, why: str, paths: list[Path]) -> None:
    """Notes that paths in `root` are left out, if there are any."""
    if paths:
        names = first_few([path.relative_to(root) for path in paths], _MAX_NAMED)
        note(f"left out of {root}, {why}: {names}")
