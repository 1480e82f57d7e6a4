"""The commands that use weights: what they print, draw and refuse."""

import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from mnv2 import convert, evaluate, predict, pretrained
from mnv2.analysis import confusion
from mnv2.data.datasets import TfdsDataset
from mnv2.models import create_model
from mnv2.runtime import cli
from mnv2.training import metrics
from mnv2.training.evaluation import match_classes


def drawn(channels, class_names, **fields):
    fields = {"num_classes": len(class_names), "width": 0.1, "strides": "small", **fields}
    model = create_model("mobilenet_v2", **fields)
    init = jax.jit(model.init, compiler_options={"xla_backend_optimization_level": 0})
    variables = init(jax.random.key(3), jax.numpy.zeros((1, 28, 28, channels)))
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


def test_a_table_of_the_most_probable_classes_is_printed(files, monkeypatch, capsys):
    picture = files / "pictures/test/ant/0.png"
    plot = files / "plots/seen.png"
    weights = files / "weights.safetensors"
    call(predict, monkeypatch, picture, picture, "--weights", weights, "--top", 2, "--plot", plot)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [str(picture), "1", "2"] * 2 + ["drawn"]
    loaded = pretrained.load(weights)
    view = loaded.preprocess.crop_and_resize(np.asarray(Image.open(picture)), (28, 28))
    logits = loaded.model.apply(loaded.variables, loaded.preprocess(np.asarray(view)[None]))
    best = int(np.argmax(logits))
    percent = 100 * float(jax.nn.softmax(logits)[0, best])
    assert f"{loaded.class_names[best]}  {percent:6.2f} %" in lines[1]
    assert np.asarray(Image.open(plot)).shape[1] > 500


def test_gray_turned_and_single_logit_pictures_are_understood(files, tmp_path):
    tall = Image.fromarray(np.zeros((20, 30), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    tall.save(tmp_path / "tall.jpg", exif=exif)
    assert predict.read_picture(tmp_path / "tall.jpg", 3).shape == (30, 20, 3)
    assert predict.read_picture(files / "pictures/test/ant/0.png", 1).shape[2] == 1
    one = drawn(3, ("only",))
    one = pretrained.Pretrained(one.model, one.variables, one.preprocess, one.image_size)
    probabilities = one.probabilities(np.full((1, 28, 28, 3), 99.0))
    logit = one.model.apply(one.variables, one.preprocess(np.full((1, 28, 28, 3), 99.0)))[0, 0]
    np.testing.assert_allclose(probabilities[0, 1], jax.nn.sigmoid(logit), rtol=1e-3)
    assert one.display_names == ("class 0", "class 1")


def test_an_evaluation_counts_every_picture_once(files, monkeypatch, capsys):
    weights, folder = files / "weights.safetensors", files / "evaluation"
    for batch_size in (2, 8, 50):
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
            view = loaded.preprocess.crop_and_resize(np.asarray(Image.open(path)), (28, 28))
            logits = loaded.logits(loaded.variables, np.asarray(view)[None])
            labels = jax.numpy.array([label])
            sums.append(metrics.count(logits, labels, metrics.cross_entropy(logits, labels)))
    assert metrics.summarize(sums) == pytest.approx(result, rel=1e-4)


def test_the_commonest_mistakes_are_in_per_cent_of_their_class():
    matrix = np.array([[8, 2, 0], [0, 10, 0], [1, 3, 0]])
    assert confusion.commonest_mistakes(matrix) == [(2, 1, 75.0), (2, 0, 25.0), (0, 1, 20.0)]


def test_a_thousand_classes_match_imagenets_with_or_without_background(fashion_mnist):
    class ImageNet(TfdsDataset):
        num_classes, class_names = 1000, pretrained.imagenet.synsets()

    imagenet = ImageNet("imagenet2012", fashion_mnist.builder, 0)
    for count in (1000, 1001):
        loaded = drawn(3, pretrained.imagenet.class_names(count))
        matched = match_classes(loaded, imagenet, "weights")
        assert matched.display_names[0] == "tench"


def test_bad_input_is_one_clear_line(files, monkeypatch, capsys, tmp_path):
    weights = files / "weights.safetensors"
    picture = files / "pictures/test/ant/0.png"
    (tmp_path / "broken.png").write_bytes(picture.read_bytes()[:50])
    (tmp_path / "text.jpg").write_text("no picture")
    pictures = f"folder:{files / 'pictures'}"
    pretrained.save(drawn(3, ("ant", "cat", "bee")), tmp_path / "other.safetensors")
    pretrained.save(pretrained.load(weights).backbone(), tmp_path / "headless.safetensors")
    for module, arguments, message in (
        (predict, [tmp_path / "none.png", "--weights", weights], "no such picture: "),
        (predict, [tmp_path / "text.jpg", "--weights", weights], "cannot read picture "),
        (predict, [tmp_path / "broken.png", "--weights", weights], "cannot read picture "),
        (predict, [picture, "--weights", "none.h5"], "no such file: none.h5"),
        (predict, [picture, "--weights", weights, "--top", 0], "--top must be greater than 0"),
        (predict, [picture, "--weights", tmp_path / "headless.safetensors"], "no classifier"),
        (evaluate, ["--weights", weights, "--dataset", "fashion_mnist"], "3 classes, fashion"),
        (
            evaluate,
            ["--weights", tmp_path / "other.safetensors", "--dataset", pictures],
            "calls class 1 'cat', ",
        ),
        (evaluate, ["--weights", weights, "--dataset", pictures, "--split", "tset"], "'test'?"),
        (convert, [weights, tmp_path / "out.h5", "--names", "keras"], "strides = "),
        (convert, [weights, tmp_path / "out.h5", "--names", "karas"], "mean 'keras'?"),
    ):
        assert message in refused(module, monkeypatch, capsys, *arguments)
    assert not (tmp_path / "out.h5").exists()


def test_weights_are_converted(files, monkeypatch, capsys, tmp_path):
    call(convert, monkeypatch, files / "weights.safetensors", tmp_path / "new/again.safetensors")
    assert "MobileNetV2, 3 classes, in" in capsys.readouterr().out
    before, after = (
        pretrained.load(path)
        for path in (files / "weights.safetensors", tmp_path / "new/again.safetensors")
    )
    jax.tree.map(np.testing.assert_array_equal, before.variables, after.variables)
