"""Broken pictures in a TFDS data set stop training.

The same for folders of pictures is tested in test_image_folder.py.
"""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from mnv2.data import open_dataset, train_batches
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


def test_a_broken_picture_stops_training(prepared):
    dataset = open_dataset(*prepared, 5)
    batches = train_batches(dataset, 5, seed=0, view=view_of(size=(8, 8), channels=3))
    with pytest.raises(UserError) as raised:
        list(itertools.islice(batches, 3))
    assert "cannot read a picture of odd_pictures, or see it as" in str(raised.value)
    assert "damaged" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_broken_pictures_of_a_set_are_not_skipped(prepared):
    with pytest.raises(UserError, match=r"data.on_broken skip is for folder:PATH, got odd_pict"):
        open_dataset(*prepared, 5, "skip")
