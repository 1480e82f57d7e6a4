"""Pipelines of text: what is understood, and what is refused in one line."""

import pytest

from mnv2.preprocess import HOST, MIX, PICTURES, parse
from mnv2.preprocess.text import OPERATIONS, described
from mnv2.runtime.errors import UserError


def test_operations_have_their_arguments_in_order_and_their_defaults():
    text = "resized_crop(0.2, method='nearest')| flip |erase(0.25)|mix(mixup=0.2, until='3 epochs')"
    found = parse(text, "data.train")
    assert [call.name for call in found.calls] == ["resized_crop", "flip", "erase", "mix"]
    crop, flip, _, mix = found.calls
    assert (crop["smallest"], crop["largest"], crop["method"]) == (0.2, 1.0, "nearest")
    assert flip["probability"] == 0.5
    assert (mix["mixup"], mix["cutmix"], mix["until"]) == (0.2, 0.0, "3 epochs")
    assert [call.name for call in found.of(HOST)] == ["resized_crop"]
    assert [call.name for call in found.of(PICTURES, MIX)] == ["flip", "erase", "mix"]
    assert found.flat()["erase.probability"] == 0.25
    assert parse("flip|erase(0.1)|erase(0.2)", "x").flat()["erase_2.probability"] == 0.2
    assert hash(found) == hash(parse(text, "data.train"))


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_text_has_no_operations(text):
    assert not parse(text, "data.train").calls


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flop", r"has the unknown operation flop: did you mean flip\?"),
        ("xyzzy", "unknown operation xyzzy: there are .*flip.*rand_augment"),
        ("erase(probabilty=0.1)", "erase.* got an unexpected keyword argument 'probabilty'"),
        ("erase(2)", "probability of erase must be at least 0 and at most 1, got 2"),
        ("erase(0.1, 1, 2, 3)", "erase.* too many positional arguments"),
        ("erase(0.1, probability=0.2)", "erase.* multiple values for argument 'probability'"),
        ("flip(**{'a': 1})", r"got an unexpected keyword argument '\*\*'"),
        ("flip(x)", r"the values in flip\(x\) must be numbers or texts"),
        ("flip|resize", "has resize after flip, but must have it before"),
        ("mix(0.2)|flip", "has flip after mix, but must have it before"),
        ("mix(0.2)|mix(0.1)", "must have mix only once"),
        ("resize_shorter(256)|flip", "crop or resize to a fixed size after resize_shorter"),
        ("flip(", "operations divided by |"),
        ("flip&erase", "must be like"),
        ("optax.flip", "must be like"),
        ("flip\nimport os", "must be like"),
        ("mix(1e-9)", "mixup of mix must be at least 0.001"),
        ("mix(1e39)", "mixup of mix must be at least 0.001 and at most 1e"),
        ("resize((28, 5000))", "size of resize must be a whole number, 1 to 4096, got 5000"),
        ("flip|" * 99 + "flip", "has 100 operations, and must have at most 20"),
        ("flip|" * 20000 + "flip", "must be like .{,300}$"),
        ("flip(" + "-" * 100000 + "1)", "must be like"),
        ("rand_augment(0)", "operations of rand_augment must be a whole number, 1 to 14"),
        ("__import__('os')", "unknown operation"),
    ],
)
def test_what_is_no_pipeline_is_refused(text, said):
    with pytest.raises(UserError, match=f"^data.train.*{said}"):
        parse(text, "data.train")


def test_evaluation_has_only_what_crops_and_resizes():
    with pytest.raises(UserError, match=r"data.evaluation cannot have flip: it can have .*fit"):
        parse("fit|flip", "data.evaluation", (HOST,))


def test_every_operation_has_a_line_of_help_and_a_check_for_each_argument():
    table = described()
    for name, found in OPERATIONS.items():
        assert found.help.endswith("."), name
        assert f"`{name}(" in table
        assert found.defaults.keys() - found.checks.keys() <= {"until", "fill", "size"}, name
