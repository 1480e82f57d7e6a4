"""The names of the 1000 classes of ImageNet, in the order that all frameworks use.

The file `imagenet_classes.txt` has one line per class: its WordNet synset and the first lemma of
the synset (WordNet 3.0, Princeton University).
"""

import functools
from pathlib import Path


@functools.cache
def _names() -> dict[str, str]:
    """Returns the name of each synset, in the order of the classes."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text(encoding="utf-8")
    return dict(line.split(" ", 1) for line in lines.splitlines())


def synsets() -> tuple[str, ...]:
    """Returns the names that the data sets give to the classes: n01440764, n01443537, ..."""
    return tuple(_names())


def readable(name: str) -> str:
    """Returns the name of a synset of ImageNet, such as tench for n01440764; others stay."""
    return _names().get(name, name)


def class_names(count: int) -> tuple[str, ...] | None:
    """Returns the names of 1000 classes, or of 1001 with the background; None for other numbers."""
    names = tuple(_names().values())
    return {1000: names, 1001: ("background", *names)}.get(count)
