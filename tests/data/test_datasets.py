"""Data sets are opened by name, prepared if necessary, and split."""

import contextlib
import shutil
import tempfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mnv2.data import datasets, open_dataset, tfds_dataset
from mnv2.data import fashion_mnist as fashion_mnist_module
from mnv2.runtime.errors import UserError


def test_fashion_mnist_is_complete(fashion_mnist):
    assert fashion_mnist.image_shape == (28, 28, 1)
    assert fashion_mnist.num_classes == 10
    counts = [fashion_mnist.num_examples(split) for split in ("train", "validation", "test")]
    assert counts == [55_000, 5_000, 10_000]
    images, labels = fashion_mnist.arrays("test")
    assert np.bincount(labels).tolist() == [1000] * 10
    assert images.shape == (10_000, 28, 28, 1)


def test_training_does_not_see_the_validation_examples(fashion_mnist):
    def pictures(split):
        images, _ = fashion_mnist.arrays(split)
        return {image.tobytes() for image in images}

    train, validation = pictures("train"), pictures("validation")
    # Fashion-MNIST contains a few pictures twice, although the splits are disjoint ranges.
    assert len(train & validation) < 20
    assert fashion_mnist.tfds_range("train") == ("train", 0, 55_000)
    assert fashion_mnist.tfds_range("validation") == ("train", 55_000, 60_000)


def test_pictures_are_decoded_once_and_again_if_what_was_kept_is_damaged(
    fashion_mnist, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decode = tfds_dataset._decoded_arrays.__wrapped__
    decoded = decode(fashion_mnist.builder, "test")
    (kept,) = (tmp_path / "mnv2/decoded").iterdir()

    def is_same():
        again = decode(fashion_mnist.builder, "test")
        return all(map(np.array_equal, decoded, again))

    with monkeypatch.context() as patch:
        patch.setattr(type(fashion_mnist.builder), "as_dataset", None)  # fails if called
        assert is_same()
    for damaged in (kept.read_bytes()[:1000], b""):
        kept.write_bytes(damaged)
        assert is_same()


class Numbers(tfds.core.GeneratorBasedBuilder):
    """Pictures that show their number."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 1)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(200):
            yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 2}


def test_arrays_have_the_pictures_of_their_split_also_of_several_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    builder = Numbers(data_dir=tmp_path)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=5))
    dataset = open_dataset("numbers", str(tmp_path), 30)
    assert len(builder.info.splits["train"].filepaths) == 5
    for split in ("train", "validation", "test"):
        images, labels = dataset.arrays(split)
        assert len(images) == dataset.num_examples(split)
        assert (images[:, 0, 0, 0] % 2 == labels).all()
        shown = {int(dataset.decode(x).numpy()[0, 0, 0]) for x in dataset.encoded(split)}
        assert {*images[:, 0, 0, 0].tolist()} == shown


def test_fashion_mnist_comes_from_debians_package_if_its_server_cannot_be_reached(
    fashion_mnist, tmp_path, monkeypatch
):
    if not shutil.which("apt-get"):
        pytest.skip("no apt-get here")
    monkeypatch.setattr(fashion_mnist_module, "reachable", lambda url: False)
    monkeypatch.setattr(fashion_mnist_module, "INSTALLED", tmp_path / "not installed")
    builders, prepare = tfds.core.DatasetBuilder, tfds.core.DatasetBuilder.download_and_prepare
    few = tfds.download.DownloadConfig(max_examples_per_split=1000)  # all of them take 30 s
    monkeypatch.setattr(
        builders, "download_and_prepare", lambda *a, **k: prepare(*a, **k, download_config=few)
    )
    dataset = open_dataset("fashion_mnist", str(tmp_path), 0)

    def pictures(of, split):
        images, labels = of.arrays(split)
        return {image.tobytes(): label for image, label in zip(images, labels, strict=True)}

    whole = pictures(fashion_mnist, "train") | pictures(fashion_mnist, "validation")
    assert pictures(dataset, "train").items() <= whole.items()
    assert pictures(dataset, "test").items() <= pictures(fashion_mnist, "test").items()
    assert dataset.num_examples("train") == dataset.num_examples("test") == 1000


def test_a_data_set_that_another_process_has_prepared_is_not_prepared_again(
    fashion_mnist, tmp_path, monkeypatch
):
    @contextlib.contextmanager
    def prepared_while_waiting(path):
        assert path == tmp_path / ".fashion_mnist.lock"
        shutil.copytree(fashion_mnist.builder.data_dir, tmp_path / "fashion_mnist" / "3.0.1")
        yield

    (scratch := tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(datasets, "locked", prepared_while_waiting)
    monkeypatch.setattr(fashion_mnist_module, "prepare", None)  # fails if called
    dataset = open_dataset("fashion_mnist", str(tmp_path), 0)
    assert dataset.num_examples("train") == 60_000
    assert list(scratch.iterdir()) == []


def test_a_data_dir_that_cannot_be_written_is_rejected_in_one_line(fashion_mnist, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot prepare fashion_mnist in .*: .*File exists"):
        open_dataset("fashion_mnist", str(tmp_path / "file"), 0)


def test_a_data_set_that_cannot_be_downloaded_is_rejected_immediately(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "reachable", lambda url: False)
    with pytest.raises(UserError, match=r"cannot download cifar10: .* cannot be reached"):
        open_dataset("cifar10", str(tmp_path), 0)


def test_a_folder_of_pictures_is_a_data_set(picture_folder):
    dataset = open_dataset(f"folder:{picture_folder}", None, 4)
    assert dataset.class_names == ["cat", "dog"]
    counts = [dataset.num_examples(split) for split in ("train", "validation", "test")]
    assert counts == [20, 4, 10]
    assert dataset.image_shape == (None, None, 3)


@pytest.mark.parametrize(
    ("name", "validation", "message"),
    [
        ("fashion_mnst", 0, "unknown data set 'fashion_mnst': did you mean 'fashion_mnist'"),
        ("fashion_mnist", 60_000, "validation must be 0 to 59999"),
        ("fashion_mnist", -1, "validation must be 0 to 59999"),
        ("folder:/nowhere", 0, "no pictures in /nowhere: expected /nowhere/train/CLASS"),
    ],
)
def test_bad_arguments_are_rejected(name, validation, message):
    with pytest.raises(UserError, match=message):
        open_dataset(name, None, validation)
