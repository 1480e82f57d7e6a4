"""The command that exports weights: what it writes, prints and refuses."""

import dataclasses
import importlib
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

import mnv2
from mnv2 import pretrained
from mnv2.deployment.pictures import draw_any
from mnv2.runtime.errors import UserError
from tests.deployment.networks import SHORT, network
from tests.test_predict import call, refused

evaluate = importlib.import_module("mnv2.evaluate")  # mnv2.evaluate is the function
export = importlib.import_module("mnv2.export")  # mnv2.export is the function
predict = importlib.import_module("mnv2.predict")  # mnv2.predict is the function

pytest.importorskip("litert_converter")  # it has wheels for two platforms


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of two classes, and a folder of pictures."""
    folder = tmp_path_factory.mktemp("files")
    loaded = network(repeats=SHORT, width=0.1, classes=2)
    loaded = dataclasses.replace(loaded, class_names=("ant", "bee"))
    pretrained.save(loaded, folder / "weights.safetensors")
    random = np.random.default_rng(0)
    for split, name, count in (
        ("train", "ant", 3),
        ("train", "bee", 3),
        ("test", "ant", 5),
        ("test", "bee", 4),
    ):
        place = folder / "pictures" / split / name
        place.mkdir(parents=True)
        for i in range(count):
            array = random.uniform(0, 255, (random.integers(32, 60), 40, 3)).astype(np.uint8)
            Image.fromarray(array).save(place / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pictures(files):
    return f"folder:{files / 'pictures'}"


@pytest.fixture(scope="module")
def everything(files, pictures):
    """The folder of the weights in all formats, and what was printed when they were written."""
    out = files / "out"
    with pytest.MonkeyPatch.context() as monkeypatch, io.StringIO() as printed:
        monkeypatch.setattr(sys, "stdout", printed)
        call(
            export, monkeypatch, files / "weights.safetensors", "--to", ",".join(export.FORMATS),
            "--calibrate", pictures, "--check", pictures, "--output", out,
        )  # fmt: skip
        return out, printed.getvalue()


def test_all_formats_are_written_compared_and_evaluated(everything):
    out, printed = everything
    names = ("weights.tflite", "weights.int8.tflite", "weights.onnx", "weights.int8.onnx")
    for name in (*names, "weights.stablehlo"):
        assert (out / name).stat().st_size > 1000
        row = next(x for x in printed.splitlines() if x.startswith(f"{name} ")).split()
        size, operators, difference, same = (row[i] for i in (1, 3, 4, 5))
        assert float(size) == pytest.approx((out / name).stat().st_size / 1e6, abs=0.006)
        assert int(operators) > 12
        assert float(difference) < (0.4 if "int8" in name else 1e-5)
        assert float(same) >= (50 if "int8" in name else 100)
    assert "on 9 test pictures of" in printed
    table = printed[printed.index("test split of") :].splitlines()
    (ours,) = [line.split()[1:] for line in table if line.startswith("JAX ")]
    for name in names[::2]:
        (theirs,) = [line.split()[1:] for line in table if line.startswith(f"{name} ")]
        assert theirs[0] == ours[0]
        assert float(theirs[2]) == pytest.approx(float(ours[2]), abs=0.02)  # pixels are rounded


def test_an_exported_file_predicts_and_evaluates_as_its_weights(
    everything, files, pictures, tmp_path, monkeypatch, capsys
):
    weights, onnx = files / "weights.safetensors", tmp_path / "weights.onnx"
    call(export, monkeypatch, weights, "--to", "onnx", "--output", onnx)
    assert "images of noise" in capsys.readouterr().out
    tables, summaries = [], []
    for given in (weights, everything[0] / "weights.tflite", onnx):
        table, output = tmp_path / "table.json", tmp_path / "evaluation"
        picture = files / "pictures/test/ant"
        call(predict, monkeypatch, picture, "--weights", given, "--output", table)
        call(evaluate, monkeypatch, "--weights", given, "--dataset", pictures, "--output", output)
        tables.append(json.loads(table.read_text()))
        summaries.append(json.loads((output / "result.json").read_text()))
    assert len({summary["accuracy"] for summary in summaries}) == 1
    for of_weights, *others in zip(*tables, strict=True):
        for other in others:
            assert (of_weights["path"], of_weights["class"]) == (other["path"], other["class"])
            assert of_weights["probability"] == pytest.approx(other["probability"], abs=0.01)


@pytest.mark.parametrize("layout", ["flat", "a/deep", "train/other", "test/other"])
def test_any_pictures_calibrate(layout, tmp_path, capsys):
    place = tmp_path / layout
    place.mkdir(parents=True)
    for i in range(4):
        Image.fromarray(np.full((20, 30, 3), 60 * i, np.uint8)).save(place / f"{i}.png")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    (place / "notes.txt").write_text("no picture")
    loaded = network(repeats=SHORT, width=0.1)
    images = draw_any(loaded, f"folder:{tmp_path}", None, 10)
    assert images.shape == (4, *loaded.image_size, 3)
    assert sorted(np.unique(images).tolist()) == [0, 60, 120, 180]
    np.testing.assert_array_equal(images, draw_any(loaded, f"folder:{tmp_path}", None, 10))
    assert "broken.jpg" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "drawn"),
    [
        (["train/a", "train/b", "test/a", "test/b"], 2),
        (["Train/a", "Train/b", "val/a", "val/b"], 2),
        (["bus", "car", "train"], 3),
        (["2019/may", "2019/june", "loose"], 3),
    ],
)
def test_only_training_pictures_calibrate_if_the_folder_has_splits(
    folders, drawn, tmp_path, capsys
):
    (tmp_path / "empty/train").mkdir(parents=True)
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / folder / "0.png")
    images = draw_any(network(repeats=SHORT, width=0.1), f"folder:{tmp_path}", None, 10)
    assert (len(images), capsys.readouterr().err) == (drawn, "")


def test_bad_input_is_one_line_and_nothing_is_written(
    files, pictures, tmp_path, monkeypatch, capsys
):
    weights = files / "weights.safetensors"
    features = dataclasses.replace(network(repeats=SHORT, width=0.1, classes=0), class_names=None)
    pretrained.save(features, tmp_path / "features.safetensors")
    (tmp_path / "old.tflite").write_bytes(b"precious")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.tflite").mkdir()
    int8 = ["--to", "onnx-int8", "--calibrate", pictures, "--output", tmp_path]
    for given, arguments, message in (
        (weights, ["--to", "tflite"], "unknown --to 'tflite': "),
        (weights, ["--to", "litert,onxx"], "unknown --to 'onxx': did you mean 'onnx'?"),
        (weights, ["--to", ""], "unknown --to ''"),
        (tmp_path / "features.safetensors", ["--to", "litert"], "holds no classifier"),
        (tmp_path / "none.safetensors", ["--to", "litert"], "no such file"),
        (weights, ["--to", "litert-int8"], "--to litert-int8 needs pictures"),
        (weights, [*int8[:3], "folder:/nowhere"], "no local folder /nowhere"),
        (weights, [*int8[:3], f"folder:{tmp_path / 'folder.tflite'}"], "no pictures to calibrate"),
        (weights, ["--to", "onnx", "--check", "fashion_mnist"], "fashion_mnist has 10"),
        (weights, ["--to", "onnx", "--check", "folder:/nowhere"], "/nowhere"),
        (weights, ["--to", "litert", "--output", tmp_path / "old.tflite"], "exists: --force"),
        (weights, ["--to", "litert", "--output", tmp_path / "folder.tflite"], "is a folder"),
        (weights, [*int8, "--batch", "7"], "6 pictures to calibrate with are less than one batch"),
        (tmp_path / "old.tflite", ["--to", "onnx"], "is exported already"),
        (weights, ["--to", "litert", "--output", tmp_path / "x.onnx"], "must end in .tflite"),
        (weights, ["--to", "litert,onnx", "--output", tmp_path / "x.onnx"], "is one file for 2"),
        (weights, ["--to", "onnx", "--output", tmp_path / "file"], "file"),
        (weights, ["--to", "litert", "--batch", "any"], "--batch any is for onnx"),
        (weights, ["--to", "litert", "--batch", "0"], "--batch must be a whole"),
        (weights, ["--to", "onnx", "--preprocessing", "within"], "unknown --preprocessing"),
        (weights, ["--to", "onnx", "--image_size", "0x4"], "--image_size must be a whole number"),
        (weights, ["--to", "onnx", "--threads", "0"], "--threads must be a whole number"),
    ):  # fmt: skip
        line = refused(export, monkeypatch, capsys, given, *arguments)
        assert message in line
    assert (tmp_path / "old.tflite").read_bytes() == b"precious"
    assert {path.name for path in tmp_path.iterdir()} == {
        "folder.tflite",
        "features.safetensors",
        "old.tflite",
        "file",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preprocessing": "insde"}, "unknown --preprocessing 'insde': did you mean 'inside'"),
        ({"batch": 0}, "--batch must be a whole number, 1 or more, or any, got '0'"),
        ({"to": ["onx"]}, "unknown --to 'onx': did you mean 'onnx'"),
    ],
)
def test_in_python_wrong_options_are_refused_before_anything_is_read(options, message, tmp_path):
    with pytest.raises(UserError, match=message):
        mnv2.export(**{"weights": "nothing", "to": ["onnx"], "output": tmp_path, **options})
