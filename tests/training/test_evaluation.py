"""Every command shows a network the same pixels of a file, and agrees with it about the classes."""

import dataclasses
import importlib

import numpy as np
import pytest
from PIL import Image

from mnv2.deployment import pictures
from mnv2.pretrained import Pretrained
from mnv2.training import evaluation, seen
from mnv2.training.config import from_config
from mnv2.training.setup import set_up
from mnv2.training.step import StepMetrics

# Its own size, smaller, larger, portrait, and very long ones.
SIZES = [(28, 28), (9, 12), (64, 48), (31, 57), (3, 400), (200, 28)]
TEXTS = (
    "fit(0.875)",
    "resize_shorter(crop=0.875)|center_crop",
    "central_crop(0.875)|resize(method='bilinear_tf1')",
)

predict = importlib.import_module("mnv2.predict")  # mnv2.predict is the function


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of two classes whose training pictures are those of the test, as PNG and JPEG."""
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate(SIZES):
        array = rng.integers(0, 256, (height, width, 3), np.uint8)
        for split in ("train", "test"):
            path = folder / split / f"class_{number % 2}"
            path.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path / f"{number}.{('png', 'jpg')[number % 2]}")
    return folder


def rows(images):
    """Returns images as rows in an order that depends on their pixels alone."""
    flat = [np.asarray(image, np.float32).ravel() for image in images]
    return np.stack(sorted(flat, key=lambda row: row.tobytes()))


@dataclasses.dataclass(frozen=True)
class Recorder(Pretrained):
    """A network for colour pictures that keeps what it gets."""

    batches: list = dataclasses.field(default_factory=list)
    channels = 3

    def probabilities(self, images):
        self.batches.append(images)
        return np.ones((len(images), 2))


def all_ways(config, folder, monkeypatch):
    """Yields the name of each way to look at the test pictures, and what the network gets."""
    setup = set_up(from_config(config))
    names = ("class_0", "class_1")
    network = Recorder(setup.model, {}, setup.preprocess, (28, 28), names)
    dataset, batches, count = setup.dataset, network.batches, len(SIZES)

    def step(batch):
        images, mask = (np.asarray(batch[name]) for name in ("image", "mask"))
        images = images.reshape(-1, *images.shape[-3:])
        batches.append(images[mask.ravel() > 0])
        zero = np.float32(0)
        return StepMetrics(zero, zero, zero, zero), np.zeros(mask.shape, np.int64)

    def taken():
        images = np.concatenate(batches)
        batches.clear()
        return rows(images)

    calls = []
    evaluation.evaluate(
        step, dataset, "test", 4, setup.eval_view, lambda done: calls.append(len(done))
    )
    assert calls == [0]  # of one batch, rounded up to eight devices: never after the last
    yield "evaluation in training", taken()
    evaluation.evaluate_network(step, network, dataset, "test", 4)
    yield "evaluate", taken()
    paths = sorted(folder.glob("test/*/*"))
    list(predict.predictions(network, predict.read_pictures(paths, []), count))
    yield "predict", taken()
    yield "calibration and comparison", rows(pictures.draw(network, dataset, "test", count))
    grids = []
    monkeypatch.setattr(seen, "PICTURES", count)
    monkeypatch.setattr(seen, "draw_grid", lambda drawn, columns, path: grids.append(drawn))
    seen.draw_seen(from_config(config), folder / "seen.png")
    yield "--show", rows(row[1] for row in grids[0].values())


@pytest.mark.parametrize("text", TEXTS)
def test_every_way_to_look_at_files_gives_the_same_pixels(text, files, tiny_config, monkeypatch):
    tiny_config.data.name = f"folder:{files}"
    tiny_config.data.validation = 0
    tiny_config.data.image_size = 28
    tiny_config.data.evaluation = text
    tiny_config.data.train = "flip"
    tiny_config.batch_size = len(SIZES)
    tiny_config.bn_group = None
    monkeypatch.setattr("mnv2.training.setup.number_of", lambda: 1)
    found = dict(all_ways(tiny_config, files, monkeypatch))
    expected = found.pop("predict")
    for way, images in found.items():
        np.testing.assert_array_equal(images, expected, err_msg=way)
    if text.startswith("fit"):  # the picture of the right size is as it is in its file
        own = np.asarray(Image.open(files / "test/class_0/0.png"), np.float32).ravel()
        assert (expected == own).all(axis=1).any()
