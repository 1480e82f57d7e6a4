"""Weights of other projects are exported as what their own frameworks compute."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file

from mnv2 import pretrained
from mnv2.deployment import formats
from mnv2.deployment.exported import open_exported
from mnv2.deployment.program import program_of
from tests.pretrained import reference, test_keras
from tests.pretrained.test_torch import REFERENCE

pytest.importorskip("litert_converter")  # it has wheels for two platforms

EXPORTED = {"litert": ".tflite", "onnx": ".onnx"}


def logits_of(loaded, images, to, folder):
    """Returns the logits of an exported file for `images` in [0, 255], of any size."""
    loaded = dataclasses.replace(loaded, image_size=images.shape[1:3])
    path = folder / f"network{EXPORTED[to]}"
    path.write_bytes(formats.content(program_of(loaded, pixels=False), to))
    return open_exported(path, threads=1).logits(images)


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("torchvision 0.35", "litert"),
        ("timm mobilenetv2_050", "onnx"),
        ("timm mobilenetv1_100", "litert"),
    ],
)
def test_a_file_from_pytorch_gives_the_logits_of_pytorch(name, to, tmp_path):
    save_file(reference.draw_weights(REFERENCE[name]["shapes"]), tmp_path / "weights.safetensors")
    loaded = pretrained.load(tmp_path / "weights.safetensors")
    logits = logits_of(loaded, reference.draw_images(), to, tmp_path)
    expected = np.asarray(REFERENCE[name]["logits"])
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_a_file_from_keras_gives_the_probabilities_of_keras(tmp_path):
    model = test_keras.v2(0.35)
    model.save(tmp_path / "model.keras")
    images = test_keras.images()
    expected = test_keras.output_of(model, images / 127.5 - 1)
    logits = logits_of(pretrained.load(tmp_path / "model.keras"), images, "litert", tmp_path)
    test_keras.assert_same(logits, expected)
