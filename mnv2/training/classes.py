"""Which class is which: wherever two things with classes meet, their names are compared."""

import re
from collections.abc import Sequence
from typing import Any

from mnv2 import data
from mnv2.pretrained import imagenet
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath, matches, read_json
from mnv2.runtime.layout import CHECKPOINTS, NETWORK
from mnv2.runtime.terminal import first_few, note_once
from mnv2.training.evaluation import Network

EXAMPLES = "training_examples"  # how many a run has: a key of its network.json
NETWORK_REMEDY = "move the folder of the run away to start it from the beginning"


def has_classes_of(network: Network, dataset: data.Dataset) -> bool:
    """Tells whether a network names its classes, and they are those of the data set, in order."""
    names = network.class_names
    if names is None or len(names) != dataset.num_classes:
        return False
    return len(_unlike(names, dataset.class_names)) <= _tolerated(dataset)


def match_classes[Classifier: Network](
    loaded: Classifier,
    dataset: data.Dataset,
    weights: str,
    remedy: str = "; --classes gives another",
) -> Classifier:
    """Returns the network for the classes of a data set: without slim's background for ImageNet.

    Weights that do not name their classes get the names of the data set, after a note, which ends
    with a remedy. Raises UserError if the network and the data set do not have the same classes.
    """
    if dataset.num_classes == 1000:
        loaded = loaded.without_background()
    names, of_data = loaded.display_names, tuple(dataset.class_names)
    if len(names) != len(of_data):
        raise UserError(
            f"{weights} knows {len(names)} classes, {dataset.name} has {len(of_data)}: "
            "fine-tune it on that data set with configs/finetune.py"
        )
    if loaded.class_names is None:
        first = ", ".join(of_data[:3]) + (", ..." if len(of_data) > 3 else "")
        note_once(
            f"{weights} does not name its classes: taken in the order of {dataset.name} ({first})"
            f"{remedy}"
        )
        return loaded.with_class_names(of_data, dataset.name)
    if unlike := _unlike(loaded.class_names, of_data):
        i = unlike[0]
        said = f"{weights} calls class {i} {names[i]!r}, {dataset.name} calls it {of_data[i]!r}"
        if len(unlike) > _tolerated(dataset):
            raise UserError(said)
        note_once(f"{len(unlike)} of {len(of_data)} classes have other names: {said}")
    return loaded


def check_classes_of_run(folder: AnyPath, dataset: data.Dataset) -> None:
    """Raises UserError if a run was trained on other classes than the data set has now.

    Says in a note if it had another number of training examples, which changes their order.
    """
    if not matches(folder / CHECKPOINTS, "[0-9]*") or not (folder / NETWORK).exists():
        return
    description = read_json(folder / NETWORK, NETWORK_REMEDY)
    before: Any = description.get("class_names")
    now = list(dataset.class_names)
    if before is not None and list(before) != now:
        raise UserError(
            f"{folder} was trained on other classes than {dataset.name} has now: "
            f"{_changes(before, now)}; give them back, or choose another --workdir"
        )
    examples = dataset.num_examples("train")
    if description.get(EXAMPLES, examples) != examples:
        note_once(
            f"{folder} began with {description[EXAMPLES]:,} training examples, and "
            f"{dataset.name} has {examples:,} now: they come in another order"
        )


def _changes(before: Sequence[str], now: Sequence[str]) -> str:
    """Says in what two different lists of classes differ."""
    lost, new = ([x for x in a if x not in b] for a, b in ((before, now), (now, before)))
    said = [
        f"{what} {first_few([repr(name) for name in names])}"
        for what, names in (("it lacks", lost), ("new is", new))
        if names
    ]
    if not said:
        i = next(i for i, pair in enumerate(zip(before, now, strict=False)) if len(set(pair)) > 1)
        said = [f"class {i} was {before[i]!r} and is {now[i]!r}"]
    return ", ".join(said)


def _tolerated(dataset: data.Dataset) -> int:
    """Returns how many classes may have other names: for ImageNet, of which there are many lists.

    A list in another order has hardly any name where it belongs.
    """
    return 500 if tuple(dataset.class_names) == imagenet.synsets() else 0


def _unlike(names: Sequence[str], others: Sequence[str]) -> list[int]:
    """Lists the classes that two lists of the same length name differently.

    A synset of ImageNet and its name are the same; so are spellings of the latter: `great white
    shark, white shark` and `great_white_shark`.
    """
    return [i for i, pair in enumerate(zip(names, others, strict=True)) if not _same(*pair)]


def _same(name: str, other: str) -> bool:
    if name == other:
        return True
    words, others = imagenet.readable(name), imagenet.readable(other)
    if (words == name) == (others == other):
        return False  # neither is a synset, or both are
    return _spelled(words) == _spelled(others)


def _spelled(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.partition(",")[0].casefold())).strip()
