"""Weights are saved for this package and for other frameworks, and loaded again."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from mnv2 import pretrained
from mnv2.models import create_model
from mnv2.preprocess.host import named_view
from mnv2.pretrained.loaded import DenseHead
from mnv2.runtime.errors import UserError
from tests.pretrained import reference
from tests.pretrained.test_torch import REFERENCE
from tests.variables import random_variables


def random_weights(model, channels=3, **fields):
    variables = random_variables(model, channels)
    return pretrained.Pretrained(model, variables, pretrained.Preprocessing(), **fields)


MODELS = {
    "gray V2": (create_model("mobilenet_v2", width=0.1, num_classes=3, strides="small"), 1),
    "relu6 bottleneck": (
        create_model("mobilenet_v2", width=0.1, num_classes=3, bottleneck="relu6"),
        3,
    ),
    "V1": (create_model("mobilenet_v1", width=0.1, num_classes=3, dtype="bfloat16"), 3),
    "resnet": (create_model("resnet50", width=0.1, num_classes=3), 3),
    "dense layers": (
        DenseHead(
            create_model("mobilenet_v2", width=0.1, num_classes=0), ((4, "relu"), (3, "linear"))
        ),
        3,
    ),
}  # fmt: skip


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


def test_a_network_that_the_other_framework_would_not_build_is_rejected_in_one_line(tmp_path):
    model = create_model("mobilenet_v2", width=0.1, num_classes=3, bottleneck="relu6")
    weights = random_weights(model)
    for names, path, message in (
        ("keras", "a.h5", "the keras network has bottleneck = 'linear' but this one has 'relu6'"),
        ("torchvision", "a.safetensors", "the torchvision network has bottleneck = 'linear'"),
        ("keras", "a.pth", "keras weights are written to .h5 files, not 'a.pth'"),
        ("kears", "a.h5", "unknown names 'kears': did you mean 'keras'"),
    ):
        with pytest.raises(UserError, match=message):
            pretrained.save(weights, tmp_path / path, names=names)
    assert not list(tmp_path.iterdir())


CONVENTIONS = {
    "keras": {"padding": "same", "bn_epsilon": 1e-3},
    "torchvision": {"padding": "symmetric", "bn_epsilon": 1e-5},
}
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
    "padding": {"same": "symmetric", "symmetric": "same"},
    "bn_epsilon": 1e-4,
    "xception": True,
}


@pytest.mark.parametrize(
    ("names", "network"),
    [("keras", "mobilenet_v1"), ("keras", "mobilenet_v2"), ("torchvision", "mobilenet_v2")],
)
def test_every_field_is_what_the_other_framework_builds_or_changes_no_result(names, network):
    usual = create_model(network, num_classes=3, **CONVENTIONS[names])
    classifier = {"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}
    stem = {"kernel": np.zeros((3, 3, 3, 32))}
    loaded = pretrained.Pretrained(
        usual, {"params": {"stem": stem, "classifier": classifier}}, pretrained.Preprocessing()
    )
    pretrained._check_buildable(loaded, names)
    for field in dataclasses.fields(usual):
        if field.name in ("parent", "name", "num_classes", "width", *pretrained.SAME_RESULTS):
            continue
        value = CHANGED[field.name]  # a new field needs a value here
        if isinstance(value, dict):
            value = value[getattr(usual, field.name)]
        fields = {**CONVENTIONS[names], field.name: value}
        changed = dataclasses.replace(loaded, model=create_model(network, num_classes=3, **fields))
        with pytest.raises(UserError, match=f"network has {field.name} = "):
            pretrained._check_buildable(changed, names)


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ("keras", {"width": 0.745}, "keras rounds the channels of width 0.745"),
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
    width, channels = changes.get("width", 1.0), changes.get("channels", 3)
    classes = changes.get("num_classes", 3)
    model = create_model("mobilenet_v2", num_classes=classes, width=width, **CONVENTIONS[names])
    params = {"stem": {"kernel": np.zeros((3, 3, channels, 32))}}
    output = changes.get("output", "softmax")
    preprocess = pretrained.Preprocessing()
    loaded = pretrained.Pretrained(model, {"params": params}, preprocess, output=output)
    if message is None:
        pretrained._check_buildable(loaded, names)
        return
    with pytest.raises(UserError, match=message):
        pretrained._check_buildable(loaded, names)


@pytest.mark.parametrize(("names", "name"), [("mnv2", "a.safetensors"), ("keras", "a.h5")])
def test_an_interrupted_conversion_leaves_the_old_file(names, name, tmp_path, monkeypatch):
    loaded = random_weights(create_model("mobilenet_v2", width=0.1, num_classes=3))
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
        ({"network": "mobilenet_v9"}, "describes a network that cannot be built: unknown model"),
        ({"fields": {"widht": 1}}, "cannot be built: unknown field of mobilenet_v2 'widht'"),
        ({"fields": {"repeats": "many"}}, "cannot be built|is damaged"),
        ({"fields": None}, "the description of the network in .* is damaged"),
        ({"image_size": 28}, "is damaged"),
        ({"preprocess": {"method": "cubic"}}, "unknown view 'cubic': did you mean"),
        ({"preprocess": {"colour": 1}}, "is damaged"),
        (["no", "description"], "is damaged"),
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


def test_a_network_with_a_value_that_is_not_finite_is_not_loaded(tmp_path):
    original = random_weights(MODELS["gray V2"][0], 1)
    bias = original.variables["params"]["classifier"]["bias"]
    original.variables["params"]["classifier"]["bias"] = bias.at[1].set(jnp.nan)
    pretrained.native.write(tmp_path / "weights.safetensors", original)
    with pytest.raises(UserError, match="params/classifier/bias is not finite in 1 of 3 numbers"):
        pretrained.load(tmp_path / "weights.safetensors")


def test_a_repository_on_the_hub_is_loaded_with_its_config(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    state = reference.draw_weights(REFERENCE["timm mobilenetv2_050"]["shapes"])
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        '{"pretrained_cfg": {"interpolation": "bilinear", "crop_pct": 0.9, '
        '"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}}'
    )
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(tmp_path))
    loaded = pretrained.load("timm/mobilenetv2_050.lamb_in1k")
    assert loaded.model.width == 0.5
    assert loaded.preprocess == pretrained.Preprocessing(
        named_view("bilinear", 0.9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    )
    assert flatten_dict(loaded.variables)[("params", "classifier", "bias")].shape == (10,)


def test_pickles_are_downloaded_from_the_hub_only_if_there_is_nothing_else(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []

    def download(name, revision, allow_patterns):
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").touch()
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert pretrained.hub.download("owner/name") == tmp_path / "pytorch_model.bin"
    assert len(asked) == 2
    assert all("preprocessor_config.json" in patterns for patterns in asked)
    (tmp_path / "model.safetensors").touch()
    assert pretrained.hub.download("owner/name") == tmp_path / "model.safetensors"
    assert len(asked) == 3
