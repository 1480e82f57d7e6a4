"""Class names are compared wherever two things with classes meet."""

import dataclasses
import json

import numpy as np
import pytest

from mnv2.models import create_model
from mnv2.pretrained import Preprocessing, Pretrained, imagenet
from mnv2.runtime.errors import UserError
from mnv2.runtime.layout import CHECKPOINTS, NETWORK
from mnv2.training.classes import check_classes_of_run, has_classes_of, match_classes

CLASSES = ["ant", "bee", "cat", "dog", "eel"]


class Named:
    """A data set of which only the names of the classes and the number of examples matter."""

    validation, folder, image_shape, parts, splits = 0, None, (28, 28, 3), {}, ["train"]
    fits_in_memory = arrays = encoded = first = table = decode = explain = lambda *_: None

    def __init__(self, class_names, examples=10):
        self.name, self.class_names, self._examples = "named", list(class_names), examples

    @property
    def num_classes(self):
        return len(self.class_names)

    def num_examples(self, split):
        return self._examples


def network(class_names):
    class_names = tuple(class_names)
    count = len(class_names)
    model = create_model("mobilenet_v2", num_classes=count)
    classifier = {"kernel": np.zeros((2, count)), "bias": np.zeros(count)}
    variables = {"params": {"classifier": classifier}}
    return Pretrained(model, variables, Preprocessing(), (28, 28), class_names)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["ant", "bee", "cat", "dog", "emu"], "it lacks 'eel', new is 'emu'"),
        (["ant", "bee", "cat", "dog", "eel", "fox"], "new is 'fox'"),
        (["ant", "bee", "cat", "dog"], "it lacks 'eel'"),
        (["bee", "ant", "cat", "dog", "eel"], "class 0 was 'ant' and is 'bee'"),
        (["Ant", "bee", "cat", "dog", "eel"], "it lacks 'ant', new is 'Ant'"),
    ],
)
def test_a_run_does_not_go_on_with_other_classes(tmp_path, now, said):
    description = json.dumps({"class_names": CLASSES, "training_examples": 10})
    (tmp_path / NETWORK).write_text(description)
    check_classes_of_run(tmp_path, Named(now))  # nothing is trained yet
    (tmp_path / CHECKPOINTS / "3").mkdir(parents=True)
    check_classes_of_run(tmp_path, Named(CLASSES))
    with pytest.raises(UserError, match=f"was trained on other classes .*: {said}; give them"):
        check_classes_of_run(tmp_path, Named(now))
    assert (tmp_path / NETWORK).read_text() == description


def test_another_number_of_examples_is_said(tmp_path, capsys):
    (tmp_path / NETWORK).write_text(json.dumps({"class_names": CLASSES, "training_examples": 9}))
    (tmp_path / CHECKPOINTS / "3").mkdir(parents=True)
    check_classes_of_run(tmp_path, Named(CLASSES))
    assert "began with 9 training examples, and named has 10 now" in capsys.readouterr().err


def test_a_thousand_classes_are_not_those_of_imagenet_by_their_number():
    of_imagenet = Named(imagenet.synsets())
    words = imagenet.class_names(1000)
    plants = network(f"plant {i}" for i in range(1000))
    assert not has_classes_of(plants, of_imagenet)
    with pytest.raises(UserError, match="calls class 0 'plant 0', named calls it 'n01440764'"):
        match_classes(plants, of_imagenet, "plants.h5")
    shifted = network((*words[1:], words[0]))
    with pytest.raises(UserError, match="calls class 0 'goldfish'"):
        match_classes(shifted, of_imagenet, "shifted.h5")
    for names in (
        words,
        imagenet.synsets(),
        [f"{name.replace(' ', '_').title()}, or so" for name in words],
    ):
        assert has_classes_of(network(names), of_imagenet)
        assert match_classes(network(names), of_imagenet, "w.h5").display_names[1:3]
    swapped = list(imagenet.synsets())
    swapped[3], swapped[4] = swapped[4], swapped[3]
    with pytest.raises(UserError, match="calls class 3"):
        match_classes(network(swapped[:10]), Named(imagenet.synsets()[:10]), "w.h5")


@pytest.mark.parametrize("count", [1000, 1001])
def test_imagenets_classes_match_with_or_without_slims_background(count):
    loaded = network(imagenet.class_names(count))
    matched = match_classes(loaded, Named(imagenet.synsets()), "weights")
    assert matched.display_names[0] == "tench"
    assert matched.variables["params"]["classifier"]["bias"].shape == (1000,)


def test_weights_without_names_of_classes_get_those_of_the_data_set(capsys):
    unnamed = dataclasses.replace(network(CLASSES), class_names=None)
    matched = match_classes(unnamed, Named(CLASSES), "w.h5")
    assert matched.display_names == tuple(CLASSES)
    assert "note: w.h5 does not name its classes: taken in the order of" in capsys.readouterr().err


def test_other_words_for_some_classes_of_imagenet_are_said(capsys):
    words = list(imagenet.class_names(1000))
    words[134] = "crane bird"
    match_classes(network(words), Named(imagenet.synsets()), "w.h5")
    assert "1 of 1000 classes have other names: w.h5 calls class 134" in capsys.readouterr().err


def test_synsets_are_shown_as_words():
    assert network(imagenet.synsets()[:2]).display_names == ("tench", "goldfish")
    assert network(["n01440764", "own"]).display_names == ("tench", "own")


@pytest.mark.parametrize("first", ["ant", "Ant"])
def test_names_of_other_sets_agree_to_the_letter(first):
    loaded = network([first, *CLASSES[1:]])
    if first == "ant":
        assert match_classes(loaded, Named(CLASSES), "w.h5") is loaded
        return
    with pytest.raises(UserError, match="calls class 0 'Ant', named calls it 'ant'"):
        match_classes(loaded, Named(CLASSES), "w.h5")
