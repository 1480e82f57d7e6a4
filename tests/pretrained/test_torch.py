"""This package must compute the logits and gradients that PyTorch computed (reference.py)."""

import dataclasses
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.models import create_model, mobilenet_v2
from mnv2.ops import PLAIN
from mnv2.preprocess.host import named_view
from mnv2.pretrained import torch as torch_reader
from mnv2.pretrained.infer import check_tensors, shapes_of
from mnv2.pretrained.names import tensor_names
from mnv2.runtime.errors import UserError
from tests import outputs
from tests.pretrained import gradients, reference, torch_files

REFERENCE = json.loads(reference.FILE.read_text())


# One network of each depth; the others differ from them in their shapes, which are checked.
COMPUTED = (
    "torchvision 1.0", "timm mobilenetv2_110d", "timm mobilenetv1_100",
    "transformers mobilenet_v1", "transformers mobilenet_v2",
)  # fmt: skip


def flat_names(state):
    """Renames torchvision's tensors to the names of d-li14 and tonylins: one sequence per block."""
    renamed = {}
    for name, array in state.items():
        parts = name.split(".")
        if ".conv." in name:
            block, rest = int(parts[1]), [int(p) for p in parts[3:] if p.isdigit()]
            expands = 0 if block == 1 else 1
            if len(rest) == 2:  # convolution and batch norm before an activation
                index = 3 * rest[0] + rest[1]
            else:
                index = 3 * (1 + expands) + (rest[0] - 1 - expands)
            name = f"features.{block}.conv.{index}.{parts[-1]}"
        renamed[name.replace("classifier.1", "classifier")] = array
    return renamed


def load(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    return pretrained.load(tmp_path / "weights.safetensors")


def assert_same_logits(loaded, name):
    images = loaded.preprocess(reference.draw_images())
    logits = outputs.of(loaded.model, loaded.variables, images)
    expected = np.asarray(REFERENCE[name]["logits"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", REFERENCE)
def test_a_network_of_pytorch_is_found_and_its_logits_are_the_same(name, tmp_path):
    loaded = load(reference.draw_weights(REFERENCE[name]["shapes"]), tmp_path)
    assert (loaded.model.width, loaded.model.num_classes) == (
        reference.WIDTHS[name],
        reference.CLASSES,
    )
    if name in COMPUTED:
        assert_same_logits(loaded, name)


@pytest.mark.parametrize(
    ("name", "platform"), zip(reference.GRADIENTS, ("cpu", PLAIN), strict=True)
)
def test_the_gradients_of_a_training_step_are_those_of_pytorch(name, platform, tmp_path):
    state = reference.draw_weights(REFERENCE[name]["shapes"], gradients.SHIFT)
    loaded = load(state, tmp_path)
    images = loaded.preprocess(reference.draw_images())
    names = torch_reader.read(tmp_path / "weights.safetensors").names
    expected = REFERENCE[name]["gradients"]
    ours = gradients.training_gradients(loaded, images, reference.LABELS, platform)
    assert {names[f"params/{path}"] for path in ours} == expected.keys()
    for path, gradient in ours.items():
        gradient = np.asarray(gradient)
        digest = reference.digest(
            gradient.transpose(3, 2, 0, 1) if gradient.ndim == 4 else gradient.T
        )
        norm, _ = expected[names[f"params/{gradients.reference_path(path)}"]]
        np.testing.assert_allclose(
            digest,
            expected[names[f"params/{path}"]],
            rtol=0,
            atol=gradients.TOLERANCE * norm,
            err_msg=path,
        )


def test_the_rounding_of_tonylins_and_of_the_narrow_d_li14_is_inferred(tmp_path):
    """Their files have the same names; only the numbers of channels show the rounding."""
    templates = torch_reader.TORCHVISION | {"classifier": "classifier.1"}
    names = tensor_names("mobilenet_v2", templates, torch_reader.SUFFIXES)
    channels = {
        ("up", 0.35): (32, (16, 16, 16, 24, 40, 56, 112), 1280),
        ("nearest_4", 0.1): (4, (4, 4, 4, 8, 12, 16, 32), 1280),
    }
    for (rounding, width), expected in channels.items():
        assert mobilenet_v2.scaled_channels(width, rounding) == expected
        model = create_model("mobilenet_v2", width=width, rounding=rounding, num_classes=10)
        state = {}
        for path, shape in shapes_of(model, 3).items():
            # h w i o -> o i h w
            order = (3, 2, 0, 1) if len(shape) == 4 else tuple(reversed(range(len(shape))))
            state[names[path]] = np.zeros([shape[axis] for axis in order], np.float32)
        loaded = load(flat_names(state), tmp_path)
        assert (loaded.model.rounding, loaded.model.width) == (rounding, width)


@pytest.fixture
def state():
    return reference.draw_weights(REFERENCE["torchvision 0.35"]["shapes"])


def test_flat_names_are_loaded(state, tmp_path):
    flat = flat_names(state)
    assert {"features.1.conv.3.weight", "features.2.conv.7.bias", "classifier.bias"} <= flat.keys()
    ours, same = load(flat, tmp_path), load(state, tmp_path)
    assert ours.model == same.model
    jax.tree.map(np.testing.assert_array_equal, ours.variables, same.variables)


def test_missing_unexpected_and_misshapen_tensors_are_named(state, tmp_path):
    kernel = state.pop("features.4.conv.0.0.weight")
    with pytest.raises(UserError, match=r"lacks features.4.conv.0.0.weight$"):
        load(state, tmp_path)
    with pytest.raises(
        UserError, match=r"features.4.conv.0.0.weight has shape .*47\) .*, expected .*48\)"
    ):
        load({**state, "features.4.conv.0.0.weight": kernel[:-1].copy()}, tmp_path)
    state["features.4.conv.0.0.weight"] = kernel
    with pytest.raises(UserError, match=r"has unexpected tensors: extra.weight$"):
        load({**state, "extra.weight": kernel}, tmp_path)


def test_a_damaged_file_is_rejected_in_one_line(state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        (tmp_path / "whole.safetensors").read_bytes()[:100_000]
    )
    with pytest.raises(UserError, match=r"cannot read .*cut.safetensors"):
        pretrained.load(tmp_path / "cut.safetensors")


def small(name):
    """Returns a state dict with the names of a network and at most 4 channels, for `read` alone."""
    shapes = REFERENCE[name]["shapes"]
    return reference.draw_weights({k: [min(4, size) for size in v] for k, v in shapes.items()})


@pytest.fixture
def tiny():
    return small("torchvision 0.35")


def read(tree, tmp_path, name="weights.pth", **options):
    if isinstance(tree, dict) and all(isinstance(value, np.ndarray) for value in tree.values()):
        save_file(tree, tmp_path / name)  # faster, and the same from there on
    else:
        torch_files.write(tmp_path / name, tree)
    return torch_reader.read(tmp_path / name, **options)


def assert_same_arrays(contents, expected):
    assert contents.arrays.keys() == expected.arrays.keys()
    for path, array in expected.arrays.items():
        np.testing.assert_array_equal(contents.arrays[path], array)


@pytest.fixture
def expected(tiny, tmp_path):
    return read(tiny, tmp_path, "expected.pth")


HEADS = ("classifier", "classifier.0", "classifier.1", "classifier.1.1", "fc", "head", "head.fc")


def test_one_linear_layer_of_any_name_is_the_classifier(tiny, expected, tmp_path):
    for head in HEADS:
        renamed = {name.replace("classifier.1", head): array for name, array in tiny.items()}
        assert_same_arrays(read(renamed, tmp_path), expected)
    del renamed[f"{head}.bias"]
    bias = read(renamed, tmp_path).arrays["params/classifier/bias"]
    np.testing.assert_array_equal(bias, np.zeros(4, np.float32))


PREFIXES = ("module.", "model.", "_orig_mod.", "backbone.", "net.", "module._orig_mod.model.")


@pytest.mark.parametrize("name", ["torchvision 0.35", "timm mobilenetv2_050", "flat"])
def test_prefixes_are_ignored_and_messages_name_the_tensors_of_the_file(name, tmp_path):
    state = flat_names(small("torchvision 0.35")) if name == "flat" else small(name)
    expected = read(state, tmp_path)
    for prefix in PREFIXES:
        prefixed = {prefix + key: array for key, array in state.items()}
        contents = read(prefixed, tmp_path)
        assert_same_arrays(contents, expected)
        assert set(contents.names.values()) <= prefixed.keys()


def test_a_prefix_of_the_backbone_alone_is_ignored(tiny, expected, tmp_path):
    """As in a user's network with `self.backbone = mobilenet.features` and `self.fc`."""
    renamed = {
        name.replace("features", "backbone").replace("classifier.1", "fc"): array
        for name, array in tiny.items()
    }
    assert_same_arrays(read(renamed, tmp_path), expected)


def test_a_checkpoint_of_a_training_is_read_and_the_rest_of_it_is_named(
    tiny, expected, tmp_path, capsys
):
    for key in ("state_dict", "model", "model_state_dict"):
        tree = {
            "epoch": 3,
            key: {f"module.{name}": array for name, array in tiny.items()},
            "optimizer": {"state": {0: {"exp_avg": np.ones((2, 2), np.float32)}}},
            "args": torch_files.New(torch_files.Name("argparse", "Namespace"), {"lr": 0.1}),
        }
        assert_same_arrays(read(tree, tmp_path, f"{key}.pth.tar"), expected)
        said = f"read {key}/module; left out epoch, optimizer, args"
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("key", ["state_dict_ema", "model_ema", "ema"])
def test_averaged_weights_are_preferred_and_this_is_said(key, tiny, expected, tmp_path, capsys):
    other = {name: array + 1 for name, array in tiny.items()}
    assert_same_arrays(read({"model": other, key: tiny}, tmp_path), expected)
    assert f"read {key}, averaged; left out model" in capsys.readouterr().err


def test_of_several_networks_in_one_state_dict_the_averaged_one_is_read(tiny, expected, tmp_path):
    other = {f"model.{name}": array + 1 for name, array in tiny.items()}
    averaged = {f"ema_model.{name}": array for name, array in tiny.items()}
    assert_same_arrays(read({"state_dict": {**other, **averaged}}, tmp_path), expected)


def test_several_networks_are_refused_by_name(tiny, tmp_path):
    with pytest.raises(UserError, match=r"holds several networks, in student, teacher: save the"):
        read({"teacher": tiny, "student": tiny | {"x": np.ones((2, 2), np.float32)}}, tmp_path)


@pytest.mark.parametrize("indices", [(0, 3), (0, 1), (1, 4)])
def test_several_linear_layers_are_refused_except_for_the_backbone_alone(
    indices, tiny, expected, tmp_path, capsys
):
    first, second = indices
    kernel = tiny.pop("classifier.1.weight")
    bias = tiny.pop("classifier.1.bias")
    tiny |= {f"classifier.{first}.weight": kernel, f"classifier.{first}.bias": bias}
    tiny |= {f"classifier.{second}.weight": kernel[:, :10], f"classifier.{second}.bias": bias}
    message = rf"has the linear layers classifier.{first}, classifier.{second}, and a state dict"
    with pytest.raises(UserError, match=message):
        read(tiny, tmp_path)
    contents = read(tiny, tmp_path, need_head=False)
    assert "left out its head, classifier" in capsys.readouterr().err
    arrays = {path: x for path, x in expected.arrays.items() if "classifier" not in path}
    assert_same_arrays(contents, expected._replace(arrays=arrays))


def test_a_known_head_is_kept_if_none_is_needed(tiny, expected, tmp_path):
    assert_same_arrays(read(tiny, tmp_path, need_head=False), expected)


def test_layers_that_are_no_network_are_refused_with_a_name_of_the_file(tiny, tmp_path):
    holds = "holds no MobileNet or MobileNetV2 of torchvision, timm, transformers"
    for tree, problem in (
        ({"layer1.0.conv1.weight": np.ones((2, 2, 3, 3))}, f"{holds}.* such as layer1.0.conv1"),
        ({"epoch": 3, "loss": 0.1}, f"{holds}.* no tensors, only: epoch, loss"),
        (
            torch_files.New(torch_files.Name("models", "Net"), {"_modules": {}}),
            "holds more than tensors: it is an object of the class models.Net; save the model's",
        ),
    ):
        with pytest.raises(UserError, match=problem):
            read(tree, tmp_path)


@pytest.mark.parametrize(
    ("name", "side", "shorter", "said"),
    [
        ("mobilenet_v2-b0353104.pth", 224, 256, "IMAGENET1K_V1, from its name"),
        ("mobilenet_v2-7ebf99e0.pth", 224, 232, "IMAGENET1K_V2, from its name"),
        ("mine.pth", 224, 256, r"does not tell how to prepare pictures: as for .*IMAGENET1K_V1 \("),
        ("mobilenetv2_128x128-fd66a69d.pth", 128, 146, "center_crop, to 128 x 128"),
        ("mobilenetv2_96x96-ff0e83d8.pth", 96, 109, "center_crop, to 96 x 96"),
    ],
)  # fmt: skip
def test_what_the_name_of_a_file_tells_is_used_and_said(
    name, side, shorter, said, tiny, tmp_path, capsys
):
    contents = read(tiny, tmp_path, name)
    assert contents.usage.image_size == (side, side)
    assert int(side / (contents.usage.preprocess.crop or 1)) == shorter
    assert contents.usage.preprocess.assumed
    assert re.search(said, capsys.readouterr().err)


TIMM_DEFAULT = dataclasses.replace(torch_reader.TIMM_V2, assumed=True)


@pytest.mark.parametrize(
    ("config", "preprocess", "size"),
    [
        (
            {"pretrained_cfg": {
                "input_size": [3, 160, 128], "interpolation": "bilinear", "crop_pct": 0.9,
                "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}},
            pretrained.Preprocessing(named_view("bilinear", 0.9), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
            (160, 128),
        ),
        (
            {"architecture": "mobilenetv2_100", "input_size": [3, 96, 96], "mean": [0.5] * 3,
             "std": [0.5] * 3, "crop_pct": None},
            pretrained.Preprocessing(named_view("bicubic", 0.875), (0.5,) * 3, (0.5,) * 3),
            (96, 96),
        ),
        ({"pretrained_cfg": None}, TIMM_DEFAULT, (224, 224)),
        ({"pretrained_cfg": dict.fromkeys(("mean", "input_size"))}, TIMM_DEFAULT, (224, 224)),
        ({"pretrained_cfg": {"mean": "0.5", "std": [0, 0, 0], "crop_pct": 7, "input_size": [224],
                             "interpolation": ["bicubic"], "crop_mode": "squash"}},
         torch_reader.TIMM_V2, (224, 224)),
        ([1, 2], TIMM_DEFAULT, (224, 224)),
        ("{", TIMM_DEFAULT, (224, 224)),
    ],
)  # fmt: skip
def test_the_config_of_timm_is_followed_as_far_as_it_goes(
    config, preprocess, size, tmp_path, capsys
):
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    contents = read(small("timm mobilenetv2_050"), tmp_path)
    assert (contents.usage.preprocess, contents.usage.image_size) == (preprocess, size)
    said = capsys.readouterr().err
    assert bool(said) == (preprocess in (TIMM_DEFAULT, torch_reader.TIMM_V2))


def test_images_with_four_channels_are_refused(state, tmp_path):
    state["features.0.0.weight"] = np.zeros((16, 4, 3, 3), np.float32)
    with pytest.raises(UserError, match="takes images with 4 channels; only gray"):
        load(state, tmp_path)


def test_gray_networks_get_the_average_of_the_colours_and_half_precision_is_converted(
    state, tmp_path, capsys
):
    state["features.0.0.weight"] = state["features.0.0.weight"][:, :1].copy()
    state["classifier.1.weight"] = state["classifier.1.weight"].astype(ml_dtypes.bfloat16)
    loaded = load(state, tmp_path)
    assert (loaded.preprocess.mean, loaded.preprocess.std) == ((0.449,), (0.226,))
    assert "takes gray images: assumed the colours' average" in capsys.readouterr().err
    np.testing.assert_allclose(loaded.preprocess(np.full((1, 2, 2, 1), 255 * 0.449)), 0, atol=1e-6)
    kernel = loaded.variables["params"]["classifier"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state["classifier.1.weight"].astype(np.float32).T)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.float32("nan"), "is not finite in 1 of 3 numbers"),
        (np.float32("inf"), "is not finite in 1 of 3 numbers"),
        (np.float64(1e300), "is not finite in 1 of 3 numbers"),  # in float32
        (np.int64(1), "has the type int64, expected floating-point numbers"),
        (np.float32(-1), "has negative variances"),
    ],
)
def test_numbers_that_are_not_finite_are_refused_and_their_tensor_is_named(value, problem):
    arrays = {"batch_stats/stem/bn/var": np.array([1, value, 1], value.dtype)}
    shapes, names = {"batch_stats/stem/bn/var": (3,)}, {"batch_stats/stem/bn/var": "running_var"}
    with pytest.raises(UserError, match=rf"^running_var {problem}"):
        check_tensors(arrays, shapes, names)
