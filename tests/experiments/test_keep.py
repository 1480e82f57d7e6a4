import matplotlib.image
import numpy as np
from PIL import Image

from experiments import keep
from mnv2.runtime.files import write_json
from tests.commands import run


def test_pictures_are_the_first_of_their_classes_in_the_test_split(fashion_mnist, tmp_path):
    names = [f"a/{number}" for number in range(10)]
    keep.write_pictures(fashion_mnist, names, tmp_path)
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["a_0.png", "a_3.png", "a_6.png", "a_9.png"]
    images, labels = (np.asarray(array) for array in fashion_mnist.arrays("test"))
    first = images[list(labels).index(9)]
    np.testing.assert_array_equal(Image.open(tmp_path / "a_9.png"), first[..., 0])


def test_curves_have_what_was_logged(tmp_path):
    lines = [
        {"step": 50, "train/loss": 1.0, "train/accuracy": 0.6},
        {"step": 100, "train/loss": 0.5, "train/accuracy": 0.8},
        {"step": 100, "validation/loss": 0.6, "validation/accuracy": 0.7},
    ]
    keep.draw(lines, tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0


def test_a_run_of_another_length_is_refused(tmp_path):
    numbers = ("parameters", "multiply_adds", "images_per_second", "train_seconds")
    result = {"test": {"accuracy": 0.5}, **dict.fromkeys(numbers, 1)}
    write_json(tmp_path / "result.json", result)
    write_json(tmp_path / "config.json", {"duration": "500 steps"})
    done = run("experiments.keep", str(tmp_path), str(tmp_path / "kept"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "is no run of configs/v2_ablation.py:hour" in done.stderr
    assert not (tmp_path / "kept").exists()
