"""This package must compute the logits and gradients that PyTorch computed (reference.py)."""

import json
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.models import create_model, mobilenet_v2
from mnv2.pretrained import torch as torch_reader
from mnv2.pretrained.infer import shapes_of
from mnv2.pretrained.names import tensor_names
from mnv2.runtime.errors import UserError
from tests.pretrained import gradients, reference

REFERENCE = json.loads(reference.FILE.read_text())
WIDTHS = {
    "torchvision 0.35": 0.35, "torchvision 1.0": 1.0, "torchvision 1.4": 1.4,
    "timm mobilenetv2_050": 0.5, "timm mobilenetv2_100": 1.0, "timm mobilenetv2_140": 1.4,
    "timm mobilenetv2_110d": 1.1, "timm mobilenetv2_120d": 1.2, "timm mobilenetv1_100": 1.0,
}  # fmt: skip


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
    logits = jax.jit(loaded.model.apply)(loaded.variables, images)
    expected = np.asarray(REFERENCE[name]["logits"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", REFERENCE)
def test_the_logits_are_those_of_pytorch(name, tmp_path):
    loaded = load(reference.draw_weights(REFERENCE[name]["shapes"]), tmp_path)
    assert (loaded.model.width, loaded.model.num_classes) == (WIDTHS[name], reference.CLASSES)
    assert_same_logits(loaded, name)


@pytest.mark.parametrize("name", reference.GRADIENTS)
def test_the_gradients_of_a_training_step_are_those_of_pytorch(name, tmp_path):
    state = reference.draw_weights(REFERENCE[name]["shapes"], gradients.SHIFT)
    loaded = load(state, tmp_path)
    images = loaded.preprocess(reference.draw_images())
    names = torch_reader.read(tmp_path / "weights.safetensors").names
    expected = REFERENCE[name]["gradients"]
    ours = gradients.training_gradients(loaded, images, reference.LABELS)
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
    names = tensor_names(
        "mobilenet_v2", 17, torch_reader.torchvision_names, torch_reader.VARIABLE_SUFFIXES
    )
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


def test_flat_names_are_loaded(tmp_path):
    state = flat_names(reference.draw_weights(REFERENCE["torchvision 1.0"]["shapes"]))
    assert {"features.1.conv.3.weight", "features.2.conv.7.bias", "classifier.bias"} <= state.keys()
    assert_same_logits(load(state, tmp_path), "torchvision 1.0")


@pytest.fixture
def state():
    return reference.draw_weights(REFERENCE["torchvision 0.35"]["shapes"])


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


def test_a_file_without_a_network_is_rejected_in_one_line(state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        (tmp_path / "whole.safetensors").read_bytes()[:100_000]
    )
    with pytest.raises(UserError, match=r"cannot read .*cut.safetensors"):
        pretrained.load(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="holds no MobileNet or MobileNetV2 of torchvision, timm"):
        load({"fc.weight": np.zeros((2, 2), np.float32)}, tmp_path)


class FileCreator:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_never_run(tmp_path):
    """Without PyTorch the file is not opened; PyTorch reads only tensors."""
    path, created = tmp_path / "pickle.pth", tmp_path / "created"
    path.write_bytes(pickle.dumps({"a": FileCreator(str(created))}))
    with pytest.raises(UserError, match=r"pickle.pth (needs PyTorch|holds more than tensors)"):
        pretrained.load(path)
    assert not created.exists()
