"""The commands that use weights: what they print, draw and refuse."""

import csv
import importlib
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2 import convert, data, pretrained
from mnv2.analysis import confusion
from mnv2.deployment.options import read_class_names
from mnv2.models import create_model
from mnv2.pretrained.loaded import DenseHead
from mnv2.runtime import cli
from mnv2.runtime.terminal import note_once
from mnv2.training import setup, step
from tests import outputs
from tests.conftest import ONE_BLOCK
from tests.deployment.networks import SHORT
from tests.variables import random_variables

evaluate = importlib.import_module("mnv2.evaluate")  # mnv2.evaluate is the function
predict = importlib.import_module("mnv2.predict")  # mnv2.predict is the function


def drawn(channels, class_names, **fields):
    fields = {"num_classes": len(class_names), "width": 0.1, "strides": "small", **fields}
    fields = {"repeats": ONE_BLOCK, **fields}  # all 17 of them compile for ten times as long
    model = create_model("mobilenet_v2", **fields)
    variables = random_variables(model, channels)
    # A classifier that is sure of something.
    params = variables["params"]
    params["classifier"] = jax.tree.map(lambda x: 30 * x, params["classifier"])
    return pretrained.Pretrained(
        model, variables, pretrained.Preprocessing(), (28, 28), tuple(class_names)
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights for coloured pictures of three classes, and a folder of such pictures."""
    folder = tmp_path_factory.mktemp("files")
    loaded = drawn(3, ("ant", "bee", "cat"))
    pretrained.save(loaded, folder / "weights.safetensors")
    random = np.random.default_rng(0)
    for split, name, count in (
        *(("train", name, 1) for name in ("ant", "bee", "cat")),
        *(("test", "ant", 7), ("test", "bee", 5), ("test", "cat", 1)),
    ):
        place = folder / "pictures" / split / name
        place.mkdir(parents=True)
        for i in range(count):
            array = random.uniform(0, 255, (random.integers(30, 60), 40, 3)).astype(np.uint8)
            Image.fromarray(array).save(place / f"{i}.png")
    return folder


def call(module, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    cli.run(module.main)


def refused(module, monkeypatch, capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        call(module, monkeypatch, *arguments)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def seen_by(loaded, picture):
    return loaded.preprocess.view_of(loaded.image_size, loaded.channels)(picture)


def test_a_table_of_the_most_probable_classes_is_printed(files, monkeypatch, capsys):
    picture = files / "pictures/test/ant/0.png"
    plot = files / "plots/seen.png"
    weights = files / "weights.safetensors"
    call(predict, monkeypatch, picture, picture, "--weights", weights, "--top", 2, "--plot", plot)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(picture), "1", "2"] * 2 + ["drawn"]
    loaded = pretrained.load(weights)
    view = seen_by(loaded, np.asarray(Image.open(picture)))
    logits = outputs.of_loaded(loaded, np.asarray(view)[None])
    best = int(np.argmax(logits))
    percent = 100 * float(jax.nn.softmax(logits)[0, best])
    assert f"{loaded.class_names[best]}  {percent:6.2f} %" in lines[1]
    assert np.asarray(Image.open(plot)).shape[1] > 500


def test_pictures_of_any_name_are_predicted_written_and_drawn(
    files, tmp_path, monkeypatch, capsys, recwarn
):
    picture = (files / "pictures/test/ant/0.png").read_bytes()
    names = [
        b"cost_$5_$10.png",
        b"caf\xe9.png",
        "猫, 犬.png".encode(),
        b'a "b"\nc.png',
        b"%s{}.png",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(picture)
    weights = files / "weights.safetensors"
    output, plot = tmp_path / "out/table.csv", tmp_path / "out/seen.png"
    call(predict, monkeypatch, tmp_path, "--weights", weights, "--output", output, "--plot", plot)
    assert plot.exists()
    assert not [x for x in recwarn if "Glyph" in str(x.message)]
    (line,) = predict.format_classes(np.ones(1), ["two\nlines\x1b[31m"], 1).splitlines()
    assert line.startswith("   1  two lines [31m  100.00 %")
    with output.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        paths = {os.fsencode(Path(row["path"]).name) for row in csv.DictReader(file)}
    assert paths == set(names)


def test_gray_turned_and_single_logit_pictures_are_understood(files, tmp_path):
    tall = Image.fromarray(np.zeros((20, 30), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    tall.save(tmp_path / "tall.jpg", exif=exif)
    assert predict.read_picture(tmp_path / "tall.jpg").shape == (30, 20, 3)
    assert predict.read_picture(files / "pictures/test/ant/0.png").shape[2] == 3
    one = drawn(3, ("only",))
    one = pretrained.Pretrained(one.model, one.variables, one.preprocess, one.image_size)
    probabilities = one.probabilities(np.full((1, 28, 28, 3), 99.0))
    logit = outputs.of_loaded(one, np.full((1, 28, 28, 3), 99.0))[0, 0]
    np.testing.assert_allclose(probabilities[0, 1], jax.nn.sigmoid(logit), rtol=1e-3)
    assert one.display_names == ("class 0", "class 1")


def test_an_evaluation_counts_every_picture_once(files, monkeypatch, capsys):
    weights, folder = files / "weights.safetensors", files / "evaluation"
    for batch_size in (2, 50):
        call(
            evaluate, monkeypatch, "--weights", weights, "--dataset",
            f"folder:{files / 'pictures'}", "--batch_size", batch_size, "--output", folder,
        )  # fmt: skip
        assert "13 images" in capsys.readouterr().out
        header, *rows = (folder / "confusion.csv").read_text().splitlines()
        matrix = np.array([[int(x) for x in row.split(",")[1:]] for row in rows])
        assert header == ",ant,bee,cat"
        assert matrix.sum(axis=1).tolist() == [7, 5, 1]
        result = json.loads((folder / "result.json").read_text())
        assert result["accuracy"] == pytest.approx(np.trace(matrix) / 13)
        assert result["top5_accuracy"] == 1
    # By hand, a picture at a time.
    loaded = pretrained.load(weights)
    sums = []
    for label, name in enumerate(loaded.class_names):
        for path in (files / "pictures/test" / name).iterdir():
            view = seen_by(loaded, np.asarray(Image.open(path)))
            logits = outputs.of_loaded(loaded, np.asarray(view)[None])
            labels = jax.numpy.array([label])
            sums.append(step.measure(logits, labels, step.cross_entropy(logits, labels)))
    assert step.summarize(sums) == pytest.approx(result, rel=1e-4)


def test_weights_for_gray_pictures_say_that_they_get_coloured_ones(
    files, monkeypatch, capsys, tmp_path
):
    weights = tmp_path / "gray.safetensors"
    pretrained.save(drawn(1, ("ant", "bee", "cat")), weights)
    name, picture = f"folder:{files / 'pictures'}", files / "pictures/train/ant/0.png"
    Image.open(picture).convert("L").save(tmp_path / "gray.png")
    options = "--weights", weights
    for look, count in (
        (lambda: call(predict, monkeypatch, picture, *options), 1),
        (lambda: call(predict, monkeypatch, tmp_path / "gray.png", *options), 0),
        (lambda: call(evaluate, monkeypatch, *options, "--dataset", name), 1),
        (lambda: setup._load_weights(str(weights), data.open_dataset(name)), 1),
    ):
        note_once.cache_clear()
        look()
        said = "note: the weights are for gray pictures of 28 x 28 pixels; the first one here has "
        assert capsys.readouterr().err.count(said) == count


def test_the_commonest_mistakes_are_in_per_cent_of_their_class():
    matrix = np.array([[8, 2, 0], [0, 10, 0], [1, 3, 0]])
    assert confusion.commonest_mistakes(matrix) == [(2, 1, 75.0), (2, 0, 25.0), (0, 1, 20.0)]


def test_bad_input_is_one_clear_line(files, monkeypatch, capsys, tmp_path):
    file, picture = files / "weights.safetensors", files / "pictures/test/ant/0.png"
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:50])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty").mkdir()
    pretrained.save(drawn(3, ("ant", "cat", "bee")), tmp_path / "other.safetensors")
    pretrained.save(pretrained.load(file).backbone(), tmp_path / "headless.safetensors")
    near = "weights/fashion_mnist/netwrk.safetensors"
    for given, weights, message in (
        (tmp_path / "none.png", file, "No such file or directory"),
        (f"{picture}g", file, f"{picture}g: No such file or directory: did you mean {picture}?"),
        (tmp_path / "text.jpg", file, "cannot read picture "),
        (tmp_path / "broken.png", file, "cannot read picture "),
        (tmp_path / "empty", file, "no pictures in the folder"),
        (picture, "none.h5", "no such file: none.h5"),
        (picture, near, f"no such file: {near}: did you mean {near.replace('rk', 'ork')}?"),
        (picture, tmp_path / "headless.safetensors", "no classifier"),
    ):
        line = refused(predict, monkeypatch, capsys, given, "--weights", weights)
        assert message in line
    of_pictures = ("--dataset", f"folder:{files / 'pictures'}")
    for weights, arguments, message in (
        (file, ("--dataset", "fashion_mnist"), "3 classes, fashion"),
        (tmp_path / "other.safetensors", of_pictures, "calls class 1 'cat', "),
        (file, (*of_pictures, "--split", "tset"), "'test'?"),
    ):
        line = refused(evaluate, monkeypatch, capsys, "--weights", weights, *arguments)
        assert message in line
    for names, message in (("keras", "repeats = "), ("karas", "mean 'keras'?")):
        out = tmp_path / "out.h5"
        assert message in refused(convert, monkeypatch, capsys, file, out, "--names", names)
        assert not out.exists()


def test_weights_are_converted(files, monkeypatch, capsys, tmp_path):
    call(convert, monkeypatch, files / "weights.safetensors", tmp_path / "new/again.safetensors")
    assert "MobileNetV2, 3 classes, in" in capsys.readouterr().out
    before, after = (
        pretrained.load(path)
        for path in (files / "weights.safetensors", tmp_path / "new/again.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, before.variables, after.variables)
    model = create_model("mobilenet_v1", width=0.25, num_classes=3)
    preprocess = pretrained.Preprocessing(mean=(0.1,), std=(0.2,))
    whole = pretrained.Pretrained(model, random_variables(model), preprocess, (96, 96))
    pretrained.save(whole, tmp_path / "whole.safetensors")
    out = tmp_path / "whole.h5"
    call(convert, monkeypatch, tmp_path / "whole.safetensors", out, "--names", "keras")
    view, pixels = capsys.readouterr().err.splitlines()
    assert view.endswith("view: fit(0.875), to 96 x 96")
    assert pixels.endswith("mean 0.1, std 0.2 (which the file does not tell)")


@pytest.fixture(scope="module")
def album(files, tmp_path_factory):
    """A folder of six pictures at two depths, with a text and a hidden picture."""
    folder = tmp_path_factory.mktemp("album")
    picture = files / "pictures/test/ant/0.png"
    for name in ("b.png", "a.png", "sub/c.png", "sub/d.png", "sub/e.png", "z.png", ".hidden.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture.read_bytes())
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_the_pictures_of_a_folder_are_predicted_in_order_and_written(
    files, album, monkeypatch, capsys, tmp_path
):
    weights, single = files / "weights.safetensors", files / "pictures/test/ant/0.png"
    expected = [
        str(path) for path in (single, *(album / name for name in ("a.png", "b.png")),
        *(album / "sub" / name for name in ("c.png", "d.png", "e.png")), album / "z.png")
    ]  # fmt: skip
    tables = []
    for name in ("out.csv", "out.json"):
        output = tmp_path / "new" / name
        call(predict, monkeypatch, single, album, "--weights", weights, "--output", output)
        printed = capsys.readouterr()
        assert printed.out == f"7 pictures in {output}\n"
        assert f"no pictures: {album / 'notes.txt'}\n" in printed.err
        text = output.read_text()
        tables.append(
            list(csv.DictReader(text.splitlines()) if "csv" in name else json.loads(text))
        )
    assert [{key: str(value) for key, value in row.items()} for row in tables[1]] == tables[0]
    assert [row["path"] for row in tables[1] if row["rank"] == 1] == expected
    loaded = pretrained.load(weights)
    view = seen_by(loaded, predict.read_picture(single))
    logits = outputs.of_loaded(loaded, np.asarray(view)[None])
    probabilities = jax.nn.softmax(logits)[0]
    for row in tables[1]:
        number = loaded.class_names.index(row["class"])
        assert row["probability"] == pytest.approx(float(probabilities[number]), rel=1e-4)


def test_of_several_pictures_those_that_cannot_be_read_are_named_and_the_others_predicted(
    files, monkeypatch, capsys, tmp_path
):
    picture, broken = files / "pictures/test/ant/0.png", tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:50])
    output = tmp_path / "out.csv"
    with pytest.raises(SystemExit) as ended:
        call(
            predict, monkeypatch, broken, picture, tmp_path / "none.jpg",
            "--weights", files / "weights.safetensors", "--output", output,
        )  # fmt: skip
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["warning", "note", "note", "warning", "error"]
    assert str(broken) in lines[0]
    assert "none.jpg" in lines[3]
    assert "2 of 3 pictures cannot be read" in lines[4]
    assert {row.split(",")[0] for row in output.read_text().splitlines()[1:]} == {str(picture)}


def test_prediction_computes_the_logits_of_the_network():
    """Batch norm is folded and a batch is split, which must change nothing but the rounding.

    The network has a head of two layers and a single logit, which separates two classes.
    """
    backbone = drawn(3, ("any",), repeats=SHORT).backbone()
    head = DenseHead(backbone.model, ((8, "relu"), (1, "linear")))
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (8, 28, 28, 3)).astype(np.float32)
    variables = random_variables(head)
    loaded = pretrained.Pretrained(head, variables, pretrained.Preprocessing(), (28, 28))
    expected = jax.jit(loaded.logits)(variables, images)
    found = loaded.logits_for_inference()(images)
    assert found.shape == (8, 2)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_what_a_file_does_not_tell_can_be_said(files, monkeypatch, capsys, tmp_path):
    weights, picture = files / "weights.safetensors", files / "pictures/test/ant/0.png"
    (tmp_path / "labels.txt").write_text("\ufeffone\r\ntwo words\r\nthree\r\n")
    (tmp_path / "labels.json").write_text('["one", "two words", "three"]')
    (tmp_path / "indices.json").write_text('{"two words": 1, "one": 0, "three": 2}')
    (tmp_path / "by_number.json").write_text('{"1": "two words", "0": "one", "2": "three"}')
    for labels in ("labels.txt", "labels.json", "indices.json", "by_number.json"):
        assert read_class_names(tmp_path / labels) == ["one", "two words", "three"]
    call(
        predict, monkeypatch, picture, "--weights", weights, "--classes", tmp_path / "labels.txt",
        "--mean", "0.1,0.2,0.3", "--std", "0.5", "--resize", "pillow",
    )  # fmt: skip
    printed = capsys.readouterr()
    shown = sorted(line[6:15].strip() for line in printed.out.splitlines()[1:])
    assert shown == ["one", "three", "two words"]
    assert "view: resize(method='bilinear_antialiased'), to 28 x 28" in printed.err
    assert "mean 0.1, 0.2, 0.3, std 0.5 (as you say)" in printed.err


def test_results_that_are_not_finite_are_refused(files, monkeypatch, capsys, tmp_path):
    loaded = pretrained.load(files / "weights.safetensors")
    classifier = loaded.variables["params"]["classifier"]
    classifier["kernel"] = jax.numpy.full_like(classifier["kernel"], 3e38)
    pretrained.save(loaded, tmp_path / "large.safetensors")
    picture = files / "pictures/test/ant/0.png"
    for module, arguments, message in (
        (predict, [picture, "--output", tmp_path / "x.json"], "0.png are not finite"),
        (evaluate, ["--dataset", f"folder:{files / 'pictures'}"], "not finite"),
    ):
        with pytest.raises(SystemExit) as ended:
            call(module, monkeypatch, *arguments, "--weights", tmp_path / "large.safetensors")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "x.json").exists()


def test_wrong_options_for_weights_are_refused_before_anything_is_computed(
    files, monkeypatch, capsys, tmp_path
):
    weights, picture = files / "weights.safetensors", files / "pictures/test/ant/0.png"
    (tmp_path / "two.txt").write_text("a\nb")
    (tmp_path / "gap.txt").write_text("a\n\nb")
    (tmp_path / "gap.json").write_text('{"a": 0, "b": 2}')
    for arguments, message in (
        (["--mean", "0.5"], "mean and std belong together"),
        (["--mean", "0.5", "--std", "0"], "std must not be 0"),
        (["--mean", "a", "--std", "1"], "--mean must be a number, or one per channel"),
        (["--mean", "0,0", "--std", "1"], "mean has 2 numbers but the network has 3"),
        (["--resize", "pilow"], "unknown view 'pilow': did you mean 'pillow'?"),
        (["--classes", tmp_path / "two.txt"], "names 2 classes but the weights know 3"),
        (["--classes", tmp_path / "gap.txt"], "is no list of classes"),
        (["--classes", tmp_path / "gap.json"], "is no list of classes"),
        (["--top", "many"], "--top must be a whole number, 1 or more, got 'many'; see --help"),
        (["--top", "0"], "--top must be a whole number, 1 or more, got '0'"),
        (["--image_size", "-8"], "--image_size must be a whole number, 1 or more, got '-8'"),
        (["--tpo", "3"], "unrecognized arguments: --tpo 3; see --help"),
        (["--classes", tmp_path / "none.txt"], "none.txt: No such file"),
        (["--output", tmp_path / "x.txt"], "must end in .csv or .json"),
        (["--plot", tmp_path / "x.txt"], "must end in .png or .jpg or .pdf or .svg"),
    ):
        line = refused(predict, monkeypatch, capsys, picture, "--weights", weights, *arguments)
        assert message in line
    assert not (tmp_path / "x.txt").exists()
