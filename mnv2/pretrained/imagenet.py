"""Names of ImageNet's 1000 classes, in the order in which every family numbers them.

The file beside this one gives each class its WordNet synset and the synset's first lemma
(WordNet 3.0, Princeton University).
"""

import functools
from pathlib import Path


@functools.cache
def synsets() -> tuple[str, ...]:
    """n01440764, n01443537, ...: what the data sets call the classes."""
    return tuple(line.partition(" ")[0] for line in _lines())


@functools.cache
def class_names(count: int) -> tuple[str, ...] | None:
    """tench, goldfish, ... for 1000 classes; with background before them for 1001."""
    names = tuple(line.partition(" ")[2] for line in _lines())
    return {1000: names, 1001: ("background", *names)}.get(count)


def _lines() -> list[str]:
    return Path(__file__).with_name("imagenet_classes.txt").read_text().splitlines()
