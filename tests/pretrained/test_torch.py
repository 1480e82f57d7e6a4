"""PyTorch's logits were computed beforehand (reference.py); this package must compute the same."""

import json
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.models import create_model, mobilenet_v2
from mnv2.pretrained import torch as torch_reader
from mnv2.pretrained.network import shapes_of
from mnv2.runtime.errors import UserError
from tests.pretrained import gradients, reference

REFERENCE = json.loads(reference.FILE.read_text())
WIDTHS = {
    "torchvision 0.35": 0.35, "torchvision 1.0": 1.0, "torchvision 1.4": 1.4,
    "timm mobilenetv2_050": 0.5, "timm mobilenetv2_100": 1.0, "timm mobilenetv2_140": 1.4,
    "timm mobilenetv2_110d": 1.1, "timm mobilenetv2_120d": 1.2, "timm mobilenetv1_100": 1.0,
}  # fmt: skip


def flat_names(state):
    """torchvision's names -> those of d-li14 and tonylins, who keep a block in one sequence."""
    renamed = {}
    for name, array in state.items():
        parts = name.split(".")
        if ".conv." in name:
            block, rest = int(parts[1]), [int(p) for p in parts[3:] if p.isdigit()]
            expands = 0 if block == 1 else 1
            if len(rest) == 2:  # conv and batch norm with an activation behind them
                index = 3 * rest[0] + rest[1]
            else:
                index = 3 * (1 + expands) + (rest[0] - 1 - expands)
            name = f"features.{block}.conv.{index}.{parts[-1]}"
        renamed[name.replace("classifier.1", "classifier")] = array
    return renamed


def load(state, tmp_path):
    save_file(state, tmp_path / "weights.safetensors")
    return pretrained.load(tmp_path / "weights.safetensors")


def assert_logits(loaded, name):
    images = loaded.preprocess(reference.draw_images())
    logits = jax.jit(loaded.model.apply)(loaded.variables, images)
    expected = np.asarray(REFERENCE[name]["logits"])
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("name", REFERENCE)
def test_the_logits_are_pytorchs(name, tmp_path):
    loaded = load(reference.draw_weights(REFERENCE[name]["shapes"]), tmp_path)
    assert (loaded.model.width, loaded.model.num_classes) == (WIDTHS[name], reference.CLASSES)
    assert_logits(loaded, name)


@pytest.mark.parametrize("name", reference.GRADIENTS)
def test_a_training_steps_gradients_are_pytorchs(name, tmp_path):
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
        norm, _ = expected[names[f"params/{gradients.scale_of(path)}"]]
        np.testing.assert_allclose(
            digest,
            expected[names[f"params/{path}"]],
            rtol=0,
            atol=gradients.TOLERANCE * norm,
            err_msg=path,
        )


def test_tonylins_rounding_and_a_narrow_d_li14_are_recognised(tmp_path):
    """Their files hold the same names; the numbers of channels tell how they were rounded."""
    names = torch_reader.table("mobilenet_v2", 17, torch_reader.torchvision, torch_reader.VARIABLES)
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


def test_flat_names_are_read_too(tmp_path):
    state = flat_names(reference.draw_weights(REFERENCE["torchvision 1.0"]["shapes"]))
    assert {"features.1.conv.3.weight", "features.2.conv.7.bias", "classifier.bias"} <= state.keys()
    assert_logits(load(state, tmp_path), "torchvision 1.0")


@pytest.fixture
def state():
    return reference.draw_weights(REFERENCE["torchvision 0.35"]["shapes"])


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(state, tmp_path):
    kernel = state.pop("features.4.conv.0.0.weight")
    with pytest.raises(UserError, match=r"lacks features.4.conv.0.0.weight$"):
        load(state, tmp_path)
    with pytest.raises(
        UserError, match=r"features.4.conv.0.0.weight has shape .*47\) .*, expected .*48\)"
    ):
        load({**state, "features.4.conv.0.0.weight": kernel[:-1].copy()}, tmp_path)
    state["features.4.conv.0.0.weight"] = kernel
    with pytest.raises(UserError, match=r"holds the unknown extra.weight$"):
        load({**state, "extra.weight": kernel}, tmp_path)


def test_a_file_that_holds_no_network_is_refused_in_one_line(state, tmp_path):
    save_file(state, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(
        (tmp_path / "whole.safetensors").read_bytes()[:100_000]
    )
    with pytest.raises(UserError, match=r"cannot read .*cut.safetensors"):
        pretrained.load(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match="holds no MobileNet or MobileNetV2 of torchvision, timm"):
        load({"fc.weight": np.zeros((2, 2), np.float32)}, tmp_path)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pickle_is_never_run(tmp_path):
    """Without torch the file is not opened at all; with it, only tensors are read."""
    bomb, crater = tmp_path / "bomb.pth", tmp_path / "crater"
    bomb.write_bytes(pickle.dumps({"a": Bomb(str(crater))}))
    with pytest.raises(UserError, match=r"bomb.pth (needs PyTorch|holds more than tensors)"):
        pretrained.load(bomb)
    assert not crater.exists()
