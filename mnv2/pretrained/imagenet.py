"""The names of the 1000 classes of ImageNet, in the order that all frameworks use.

The file `imagenet_classes.txt` has one line per class: its WordNet synset and the first lemma of
the synset (WordNet 3.0, Princeton University).
"""

import functools
from pathlib import Path


@functools.cache
def synsets() -> tuple[str, ...]:
    """Returns the names that the data sets give to the classes: n01440764, n01443537, ..."""
    return tuple(line.partition(" ")[0] for line in _lines())


def readable(name: str) -> str:
    """Returns the name of a synset of ImageNet, such as tench for n01440764; others stay."""
    return _names_of_synsets().get(name, name)


@functools.cache
def _names_of_synsets() -> dict[str, str]:
    return {synset: name for synset, _, name in (line.partition(" ") for line in _lines())}


@functools.cache
def class_names(count: int) -> tuple[str, ...] | None:
    """Returns tench, goldfish, ... for 1000 classes, and background before them for 1001.

    Returns None for any other number of classes.
    """
    names = tuple(line.partition(" ")[2] for line in _lines())
    return {1000: names, 1001: ("background", *names)}.get(count)


def _lines() -> list[str]:
    file = Path(__file__).with_name("imagenet_classes.txt")
    return file.read_text(encoding="utf-8").splitlines()
