"""A folder of pictures."""

import numpy as np
import pytest
import tensorflow as tf

from mnv2.data import datasets


@pytest.fixture(autouse=True)
def no_folder_is_open():
    datasets._open.cache_clear()


@pytest.fixture
def picture_folder(tmp_path):
    """Writes pictures of two classes, 24 for training and 10 for testing, of different sizes."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 5)):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                height, width = random.integers(20, 60, 2)
                pixels = random.integers(0, 255, (height, width, 3), np.uint8)
                path = tmp_path / split / label / f"{i}.jpg"
                path.write_bytes(tf.io.encode_jpeg(pixels).numpy())
    return tmp_path
