"""Which examples train, validation and test consist of, for sets that have only some of them."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

SPLITS = ("train", "validation", "test")

# One in so many training examples is held out for testing if a set has no split for it.
TEST_SHARE = 10


class Part(NamedTuple):
    """A range of the examples of one of the splits that a set has of its own."""

    split: str
    start: int
    stop: int


def divide(
    name: str, counts: Mapping[str, int], validation: int, unlabelled: Collection[str] = ()
) -> dict[str, Part]:
    """Returns where each of train, validation and test comes from, if there is such a split.

    name        of the data set
    counts      the number of examples of each labelled split that the set has of its own
    validation  the number of examples that are held out from the end of train
    unlabelled  the splits that the set has without labels

    Test is the set's own split, else its split validation, else the last tenth of train. Validation
    is what is held out from train, else the set's own split. One note says what is not as usual.

    Raises UserError if there is no split, or if train has too few examples.
    """
    own = {split: Part(split, 0, counts[split]) for split in SPLITS if counts.get(split)}
    parts = own.copy()
    lacks = "a split test without labels" if "test" in unlabelled else "no split test"
    if "test" not in own and "validation" in own:
        parts["test"] = own["validation"]
        note(f"{name} has {lacks}: its split validation is used as test")
    elif "test" not in own and "train" in own:
        total = counts["train"]
        stop = total - max(1, total // TEST_SHARE)
        parts["test"], parts["train"] = Part("train", stop, total), Part("train", 0, stop)
        note(
            f"{name} has {lacks}: the last {total - stop:,} of its {total:,} training examples are "
            "held out as test"
        )
    elif "validation" in own and validation:
        note(
            f"validation is the last {validation:,} training examples of {name}, and not its split "
            "validation"
        )
    if not parts:
        without = f"; {', '.join(unlabelled)} has no labels" if unlabelled else ""
        raise UserError(f"{name} has no labelled examples in {', '.join(SPLITS)}{without}")
    if "train" not in parts:
        if validation:
            raise UserError(f"{name} has no split train to hold {validation} examples out from")
        return parts
    stop = parts["train"].stop
    if not 0 <= validation < stop:
        raise UserError(
            f"data.validation must be 0 to {stop - 1} of the {stop} training examples of {name}, "
            f"got {validation}"
        )
    if validation:
        parts["validation"] = Part("train", stop - validation, stop)
        parts["train"] = Part("train", 0, stop - validation)
    return {split: parts[split] for split in SPLITS if split in parts}


def check_split(name: str, split: str, splits: Collection[str]) -> None:
    """Raises UserError unless the data set has a split; the message says which there are."""
    if split not in splits:
        raise UserError(f"{name} has no split {split!r}: choose one of {', '.join(splits)}")


def bounds_of(part: tuple[int, int], count: int) -> tuple[int, int]:
    """Returns where a part of `count` examples begins, and where the next part begins.

    `part` is (index, number of parts).
    """
    index, parts = part
    return count * index // parts, count * (index + 1) // parts
