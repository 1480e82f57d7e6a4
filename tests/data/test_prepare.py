"""A data set is written once more, smaller, as a folder of pictures."""

import numpy as np
import pytest
from PIL import Image

from mnv2 import prepare
from mnv2.data import open_dataset
from tests.test_predict import refused


def test_a_set_is_written_once_more_with_smaller_pictures(picture_folder, tmp_path):
    source = open_dataset(f"folder:{picture_folder}")
    prepare.write_resized(source, 12, tmp_path / "small")
    found = open_dataset(f"folder:{tmp_path / 'small'}")
    assert found.class_names == source.class_names
    counts = {split: source.num_examples(split) for split in source.splits}
    assert {split: found.num_examples(split) for split in found.splits} == counts
    first = next(iter(source.encoded("train")))
    name = source.class_names[int(first["label"])]
    path = tmp_path / "small" / "train" / name / "0.jpg"
    with Image.open(path) as picture:
        assert min(picture.size) == 12
        height, width, _ = source.decode(first).shape
        assert (picture.width >= picture.height) == (width >= height)
    path.write_bytes(b"as it was")
    prepare.write_resized(source, 12, tmp_path / "small")
    assert path.read_bytes() == b"as it was"
    assert np.all([x.suffix == ".jpg" for x in path.parent.iterdir()])


@pytest.mark.parametrize("options", [("--resize", "12"), ("--out", "x")])
def test_size_and_folder_belong_together(options, monkeypatch, capsys):
    line = refused(prepare, monkeypatch, capsys, "fashion_mnist", *options)
    assert "--resize and --out belong together" in line
