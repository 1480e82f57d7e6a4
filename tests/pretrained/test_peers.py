"""Comparisons that run the other frameworks: pip install -r requirements-peers.txt"""

import os
import subprocess
import sys

import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.runtime.errors import UserError
from tests import outputs
from tests.pretrained import reference
from tests.pretrained.test_torch import load


def assert_same_logits(network, loaded):
    torch = pytest.importorskip("torch")
    images = loaded.preprocess(reference.draw_images())
    with torch.no_grad():
        inputs = torch.from_numpy(np.asarray(images).transpose(0, 3, 1, 2).copy())
        theirs = network.eval()(inputs)
    theirs = getattr(theirs, "logits", theirs).numpy()  # transformers returns an object
    ours = outputs.of(loaded.model, loaded.variables, images)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("name", reference.WIDTHS)
def test_pytorch_computes_the_same_logits(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip(name.split()[0])
    network = reference.build(name)
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    state = reference.draw_weights(shapes)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    assert_same_logits(network, load(state, tmp_path))
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert_same_logits(network, pretrained.load(tmp_path / "weights.pth"))


def test_torchvision_loads_weights_saved_under_its_names(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    network = reference.build("torchvision 0.35")
    shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
    loaded = load(reference.draw_weights(shapes), tmp_path)
    pretrained.save(loaded, tmp_path / "saved.pth", names="torchvision")
    network.load_state_dict(torch.load(tmp_path / "saved.pth", weights_only=True))
    assert_same_logits(network, loaded)


class FileCreator:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_a_pth_file_with_more_than_tensors_is_rejected_and_not_run(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    torch.save({"state_dict": FileCreator(str(tmp_path / "created"))}, tmp_path / "pickle.pth")
    torch.save(reference.build("torchvision 0.35"), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:9999])
    for name, message in (
        ("pickle", "holds more than tensors"),
        ("whole", "holds more than tensors"),
        ("cut", r"cannot read .*cut.pth"),
    ):
        with pytest.raises(UserError, match=message) as error:
            pretrained.load(tmp_path / f"{name}.pth")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "created").exists()


KERAS_2 = """
import sys
import numpy as np
import tf_keras as keras
backbone = keras.applications.MobileNetV2(
    alpha=0.35, include_top=False, weights=None, input_shape=(96, 96, 3))
random = np.random.default_rng(0)
for layer in backbone.layers:
    if isinstance(layer, keras.layers.BatchNormalization):
        size = layer.gamma.shape[0]
        gamma, beta, mean = random.normal([1, 0, 0], [0.1, 0.1, 0.2], (size, 3)).T
        layer.set_weights([gamma, beta, mean, random.uniform(0.5, 2, size)])
inputs = keras.Input((96, 96, 3))
x = keras.layers.RandomFlip("horizontal")(inputs)
x = keras.applications.mobilenet_v2.preprocess_input(x)
x = keras.layers.GlobalAveragePooling2D()(backbone(x, training=False))
x = keras.layers.Dense(3, "softmax")(keras.layers.Dropout(0.2)(keras.layers.Dense(8, "relu")(x)))
model = keras.Model(inputs, x)
model.save(sys.argv[1] + "/model.h5")
model.save(sys.argv[1] + "/model.keras")
images = np.random.default_rng(1).uniform(0, 255, (2, 96, 96, 3)).astype(np.float32)
np.save(sys.argv[1] + "/probabilities.npy", model.predict(images, verbose=0))
"""


def test_a_users_keras_2_model_predicts_the_same(tmp_path):
    pytest.importorskip("tf_keras")
    subprocess.run(
        [sys.executable, "-c", KERAS_2, str(tmp_path)],
        check=True,
        capture_output=True,
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
    )
    images = np.random.default_rng(1).uniform(0, 255, (2, 96, 96, 3)).astype(np.float32)
    expected = np.load(tmp_path / "probabilities.npy")
    for name in ("model.h5", "model.keras"):
        loaded = pretrained.load(tmp_path / name)
        np.testing.assert_allclose(loaded.probabilities(images), expected, rtol=1e-4, atol=1e-6)
