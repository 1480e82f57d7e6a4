"""The network in weights/ is the one that its model card describes."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.training.evaluation import evaluate_weights
from tests.test_predict import call, predict

FOLDER = Path(__file__).parents[1] / "weights/fashion_mnist"


def test_it_has_the_accuracy_of_its_run_and_of_its_card(fashion_mnist):
    loaded = pretrained.load(FOLDER / "network.safetensors")
    summary, matrix = evaluate_weights(loaded, fashion_mnist, "test", 500)
    recorded = json.loads((FOLDER / "result.json").read_text())["test"]
    assert summary["accuracy"] == pytest.approx(recorded["accuracy"], abs=2e-4)
    assert summary["loss"] == pytest.approx(recorded["loss"], rel=1e-4)
    card = (FOLDER / "README.md").read_text()
    assert f"| test top-1, % | {100 * recorded['accuracy']:.2f} |" in card
    recalls = [float(value) for value in re.findall(r"^\| [A-Z].* \| ([\d.]+) \|$", card, re.M)]
    np.testing.assert_allclose(recalls, 100 * np.diag(matrix) / matrix.sum(axis=1), atol=0.15)


def test_it_recognises_the_pictures_beside_it(monkeypatch, capsys):
    call(predict, monkeypatch, FOLDER / "pictures", "--weights", FOLDER / "network.safetensors")
    printed = capsys.readouterr().out
    best = re.findall(r"pictures/(\S+)\.png\n +1 +(\S.*?) {2,}", printed)
    expected = {"ankle_boot": "Ankle boot", "dress": "Dress", "t-shirt_top": "T-shirt/top"}
    assert expected.items() <= dict(best).items()
    assert dict(best).keys() == {*expected, "shirt"}
