import pytest

from experiments.speed import imagenet_shaped
from mnv2.pretrained import imagenet
from mnv2.runtime.errors import UserError


def test_the_official_builder_reads_pictures_of_all_classes_without_a_connection(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("mnv2.data.datasets.reachable", lambda url: False)
    monkeypatch.setattr(imagenet_shaped.photographs, "SIZES", ((20, 15),))  # quick to write
    dataset = imagenet_shaped.prepare(tmp_path, 1000, 3)
    assert dataset.num_examples("train") == 1000
    assert dataset.num_examples("test") == 3
    assert tuple(dataset.class_names) == imagenet.synsets()
    labels = {int(example["label"]) for example in dataset.encoded("train")}
    assert labels == set(range(1000))
    with pytest.raises(UserError, match="has an imagenet2012 of 1000 training pictures, not 2000"):
        imagenet_shaped.prepare(tmp_path, 2000, 3)


def test_archives_that_are_there_already_are_not_overwritten(tmp_path):
    there = tmp_path / "downloads" / "manual" / "ILSVRC2012_img_train.tar"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"the real one")
    with pytest.raises(UserError, match="exists already: choose another --data_dir"):
        imagenet_shaped.prepare(tmp_path, 1000, 3)
    assert there.read_bytes() == b"the real one"
