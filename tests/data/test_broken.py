"""Broken pictures in a TFDS data set are named, counted and skipped.

The same for folders of pictures is tested in test_image_folder.py.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import datasets, open_dataset, train_batches
from mnv2.runtime.errors import UserError
from tests.views import view_of

COUNTS = {"train": 20, "test": 6}
BROKEN = {"train": (3, 17), "test": (0,)}  # labels, because TFDS shuffles the examples


def picture(label):
    return tf.io.encode_jpeg(np.full((9, 8, 3), 10 * label, np.uint8)).numpy()


class OddPictures(tfds.core.GeneratorBasedBuilder):
    """A data set in which some pictures are cut short."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for i in range(COUNTS[split]):
            content = picture(i)
            yield i, {"image": content[:30] if i in BROKEN[split] else content, "label": i}


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepares the data set with an empty cache; returns (name, data_dir)."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    builder = OddPictures(data_dir=tmp_path)
    builder.download_and_prepare()
    return "odd_pictures", str(tmp_path)


def reopen(prepared, on_broken="stop"):
    datasets._open_tfds.cache_clear()
    return open_dataset(*prepared, 5, on_broken)


def test_a_broken_picture_stops_training_and_all_broken_ones_are_named(prepared):
    batches = train_batches(reopen(prepared), 5, seed=0, view=view_of(size=(8, 8), channels=3))
    with pytest.raises(UserError) as raised:
        list(itertools.islice(batches, 3))
    message = str(raised.value)
    assert "3 of the 26 examples of odd_pictures in " in message
    assert message.count("odd_pictures-train.tfrecord-00000-of-00001__") == 2
    assert message.count("odd_pictures-test.tfrecord-00000-of-00001__") == 1
    assert "set data.on_broken to skip" in message
    assert "\n" not in message


def test_broken_pictures_are_skipped_in_every_split(prepared, capsys):
    dataset = reopen(prepared, "skip")
    assert "warning: 3 of the 26 examples" in capsys.readouterr().err
    counts = [dataset.num_examples(split) for split in ("train", "validation", "test")]
    whole = reopen(prepared)
    assert sum(counts) == 26 - 3
    assert counts[2] == 5
    for split in ("train", "validation", "test"):
        labels = [int(x["label"]) for x in dataset.encoded(split)]
        all_labels = [int(x["label"]) for x in whole.encoded(split)]
        broken = BROKEN["test" if split == "test" else "train"]
        assert labels == [label for label in all_labels if label not in broken]
        assert len(labels) == dataset.num_examples(split)
        images, decoded_labels = dataset.arrays(split) if labels else ((), ())
        assert list(decoded_labels) == labels
        assert [round(float(np.mean(x)) / 10) for x in images] == labels
    batches = train_batches(dataset, 5, seed=0, view=view_of(size=(8, 8), channels=3))
    assert next(batches)["image"].shape == (5, 8, 8, 3)


def test_the_result_is_cached(prepared, monkeypatch):
    first = reopen(prepared, "skip")
    monkeypatch.setattr("mnv2.data.broken.decoding_error", None)  # fails if called
    assert reopen(prepared, "skip").broken == first.broken


def test_an_unknown_value_of_on_broken_is_rejected(prepared):
    with pytest.raises(UserError, match=r"unknown data\.on_broken 'ignore'"):
        reopen(prepared, "ignore")
