"""Weights are saved for this package and for other frameworks, and loaded again."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mnv2 import pretrained
from mnv2.models import create_model, flat_fields
from mnv2.pretrained.loaded import DenseHead
from mnv2.runtime.errors import UserError
from tests.pretrained import reference
from tests.pretrained.test_torch import REFERENCE
from tests.variables import random_variables


def random_weights(model, channels=3, **fields):
    variables = random_variables(model, channels)
    return pretrained.Pretrained(model, variables, pretrained.Preprocessing(), **fields)


create_small = functools.partial(create_model, width=0.1, num_classes=3)
MODELS = {  # with the channels of their images
    "gray V2": (create_small("mobilenet_v2", strides="small"), 1),
    "relu6 bottleneck": (create_small("mobilenet_v2", bottleneck="relu6"), 3),
    "V1": (create_small("mobilenet_v1", dtype="bfloat16"), 3),
    "resnet": (create_small("resnet50"), 3),
    "dense layers": (
        DenseHead(create_small("mobilenet_v2", num_classes=0), ((4, "relu"), (3, "linear"))),
        3,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_saved_weights_are_loaded_unchanged(name, tmp_path):
    model, channels = MODELS[name]
    original = random_weights(
        model, channels, image_size=(28, 28), class_names=("a", "b", "c"), output="sigmoid"
    )
    pretrained.save(original, tmp_path / "weights.safetensors")
    loaded = pretrained.load(tmp_path / "weights.safetensors")
    assert loaded.channels == channels
    assert loaded.num_classes == 3
    for field in dataclasses.fields(original):
        if field.name != "variables":
            assert getattr(loaded, field.name) == getattr(original, field.name)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, original.variables)


def test_weights_saved_under_torchvisions_names_are_torchvisions_state_dict(tmp_path):
    shapes = REFERENCE["torchvision 0.35"]["shapes"]
    state = reference.draw_weights(shapes)
    save_file(state, tmp_path / "theirs.safetensors")
    loaded = pretrained.load(tmp_path / "theirs.safetensors")
    pretrained.save(loaded, tmp_path / "ours.safetensors", names="torchvision")
    written = load_file(tmp_path / "ours.safetensors")
    assert written.keys() == state.keys()
    pretrained.save(loaded, tmp_path / "native.safetensors")
    (tmp_path / "usual").touch()
    for name in ("ours.safetensors", "native.safetensors"):  # others can read them
        assert (tmp_path / name).stat().st_mode == (tmp_path / "usual").stat().st_mode
    for name, array in state.items():
        np.testing.assert_array_equal(written[name], array)


def test_what_cannot_be_saved_leaves_no_file(tmp_path):
    weights = random_weights(MODELS["relu6 bottleneck"][0])
    for names, path, message in (
        ("keras", "a.h5", "the keras network has bottleneck = 'linear' but this one has 'relu6'"),
        ("keras", "a.pth", "keras weights are written to .h5 files, not 'a.pth'"),
        ("kears", "a.h5", "unknown names 'kears': did you mean 'keras'"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.save(weights, tmp_path / path, names=names)
    assert not list(tmp_path.iterdir())


# Another value of each field that can be wrong; the others are changed below.
CHANGED = {
    "rounding": "up",
    "expansion": 4,
    "activation": "relu",
    "bottleneck": "relu6",
    "shortcut": "none",
    "block": "separable",
    "repeats": (1, 2, 3, 4, 3, 3, 2),
    "strides": "small",
    "padding": {"keras": "symmetric", "torchvision": "same"},
    "bn_epsilon": 1e-4,
    "xception": True,
}


def buildable(names, network="mobilenet_v2", channels=3, output="softmax", **fields):
    """Checks whether another framework would build a network, whose weights are not asked."""
    fields = {"num_classes": 3, **pretrained.CONVENTIONS[names], **fields}
    params = {"stem": {"kernel": np.zeros((3, 3, channels, 32))}}
    preprocess = pretrained.Preprocessing()
    loaded = pretrained.Pretrained(
        create_model(network, **fields), {"params": params}, preprocess, output=output
    )
    pretrained._check_buildable(loaded, names)


@pytest.mark.parametrize(
    ("names", "network"),
    [("keras", "mobilenet_v1"), ("keras", "mobilenet_v2"), ("torchvision", "mobilenet_v2")],
)
def test_every_field_is_what_the_other_framework_builds_or_changes_no_result(names, network):
    buildable(names, network)
    for field in flat_fields(create_model(network)):
        if field in ("num_classes", "width", *pretrained.SAME_RESULTS):
            continue
        value = CHANGED[field]  # a new field needs a value here
        if isinstance(value, dict):
            value = value[names]
        with pytest.raises(UserError, match=f"network has {field} = "):
            buildable(names, network, **{field: value})


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ("keras", {"width": 0.745}, "keras rounds the channels of width 0.745"),
        ("keras", {"width": 0.2, "network": "mobilenet_v1"}, "keras rounds the channels"),
        ("torchvision", {"width": 0.745}, None),
        ("keras", {"output": "sigmoid"}, "ends in a softmax but this one in a sigmoid"),
        ("keras", {"num_classes": 1}, "ends in a softmax but this one in a sigmoid"),
        ("torchvision", {"num_classes": 1}, None),
        ("torchvision", {"num_classes": 0}, "has a classifier but this one has none"),
        ("torchvision", {"channels": 1}, "takes colour pictures"),
        ("keras", {"channels": 1}, None),
    ],
)
def test_what_is_around_a_network_is_what_the_other_framework_has(names, changes, message):
    if message is None:
        buildable(names, **changes)
        return
    with pytest.raises(UserError, match=message):
        buildable(names, **changes)


@pytest.mark.parametrize(("names", "name"), [("mnv2", "a.safetensors"), ("keras", "a.h5")])
def test_an_interrupted_conversion_leaves_the_old_file(names, name, tmp_path, monkeypatch):
    loaded = random_weights(create_small("mobilenet_v2"))
    (tmp_path / name).write_bytes(b"precious")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mnv2.runtime.files._sync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pretrained.save(loaded, tmp_path / name, names=names)
    assert (tmp_path / name).read_bytes() == b"precious"
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_damaged_or_incomplete_file_is_rejected_in_one_line(tmp_path):
    path = tmp_path / "weights.safetensors"
    original = random_weights(MODELS["gray V2"][0], 1)
    kernel = original.variables["params"]["stem"]["kernel"]
    original.variables["params"]["stem"]["kernel"] = kernel[..., :1]
    pretrained.save(original, path)
    with pytest.raises(UserError, match="params/stem/kernel has shape"):
        pretrained.load(path)
    del original.variables["params"]["stem"]["bn"]
    pretrained.native.write(path, original)
    with pytest.raises(UserError, match=r"lacks params/stem/bn/bias, params/stem/bn/scale$"):
        pretrained.load(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read .*weights.safetensors"):
        pretrained.load(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"network": "mobilenet_v9"}, "unknown model 'mobilenet_v9'"),
        ({"fields": {"widht": 1}}, "unknown field of mobilenet_v2 'widht'"),
        ({"fields": {"repeats": "many"}}, "repeats"),
        ({"fields": None}, "cannot read"),
        ({"image_size": 28}, "cannot read"),
        ({"preprocess": {"method": "cubic"}}, "unknown view 'cubic': did you mean"),
        ({"preprocess": {"colour": 1}}, "cannot read"),
        (["no", "description"], "cannot read"),
        ("{", "cannot read"),
    ],
)
def test_a_damaged_description_is_rejected_in_one_line(change, problem, tmp_path):
    path = tmp_path / "weights.safetensors"
    description = pretrained.native.description_of(
        MODELS["gray V2"][0], 1, pretrained.Preprocessing(), (28, 28), None
    )
    if isinstance(change, str):
        text = change
    else:
        text = json.dumps(description | change if isinstance(change, dict) else change)
    save_file({"a": np.ones(2, np.float32)}, path, metadata={"mnv2": text})
    with pytest.raises(UserError, match=problem) as error:
        pretrained.load(path)
    assert "\n" not in str(error.value)
