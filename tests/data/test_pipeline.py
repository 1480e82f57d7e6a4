"""Batches are deterministic, complete and the same for any number of processes."""

import collections
import itertools
import subprocess
import sys

import numpy as np
import pytest

from mnv2.data import eval_batches, open_dataset, train_batches
from mnv2.data.pipeline import Batch, number_of_parts
from mnv2.data.tfds_dataset import TfdsDataset
from mnv2.runtime.errors import UserError
from tests.views import eval_view_of, view_of

SIZE = (28, 28)


@pytest.fixture(scope="module")
def small():
    """Returns Fashion-MNIST with 500 training images, so that an epoch is short."""
    return open_dataset("fashion_mnist", None, 59_500)


def take(batches, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        np.array_equal(a[name], b[name])
        for a, b in zip(one, other, strict=True)
        for name in ("image", "label", "index", "epoch", "position")
    )


@pytest.mark.parametrize(("text", "first_steps"), [("", (0, 3, 7, 15)), ("inception_crop", (5,))])
def test_resuming_within_an_epoch_gives_the_same_batches(small, text, first_steps):
    arguments = {"seed": 3, "view": view_of(text)}
    whole = take(train_batches(small, 64, **arguments), 18)  # two epochs and a half
    for first_step in first_steps:
        rest = take(train_batches(small, 64, first_step=first_step, **arguments), 18 - first_step)
        assert same(rest, whole[first_step:])


@pytest.mark.parametrize(
    ("text", "repeats", "first_steps"),
    [("", 1, (2, 4, 7)), ("inception_crop", 1, (7,)), ("resized_crop", 3, (7,))],
)
def test_resuming_a_data_set_on_disk_gives_the_same_batches(
    picture_folder, text, repeats, first_steps
):
    dataset = open_dataset(f"folder:{picture_folder}", None, 0)
    view = view_of(text, size=(16, 16), channels=3)
    arguments = {"seed": 3, "view": view, "repeats": repeats}
    whole = take(train_batches(dataset, 5, **arguments), 10)
    for first_step in first_steps:
        rest = take(train_batches(dataset, 5, first_step=first_step, **arguments), 10 - first_step)
        assert same(rest, whole[first_step:])


def test_every_epoch_has_every_example_once_in_a_new_order(small):
    arrays, _ = small.arrays("train")
    batches = take(train_batches(small, 50, seed=0, view=view_of()), 20)
    epochs = [np.concatenate([b["image"] for b in part]) for part in (batches[:10], batches[10:])]

    def multiset(images):
        return collections.Counter(image.tobytes() for image in images)

    assert multiset(epochs[0]) == multiset(epochs[1]) == multiset(arrays)
    assert not np.array_equal(*epochs)


@pytest.mark.parametrize("batch_size", [1, 7, 500, 512])
def test_evaluation_has_every_example_once_in_order(small, batch_size):
    small = open_dataset("fashion_mnist", None, 500)
    batches = list(eval_batches(small, "validation", batch_size, view=eval_view_of()))
    assert all(len(batch["mask"]) == batch_size for batch in batches)
    labels = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches])
    np.testing.assert_array_equal(labels, small.arrays("validation")[1])


@pytest.mark.parametrize("text", ["", "inception_crop", "resized_crop"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_images_are_bytes_with_the_wanted_channels(small, text, channels):
    view = view_of(text, channels=channels)
    (batch,) = take(train_batches(small, 500, seed=0, view=view), 1)
    assert batch["image"].dtype == np.uint8
    assert batch["image"].shape == (500, *SIZE, channels)
    assert (batch["image"].min(), batch["image"].max()) == (0, 255)
    assert batch["label"].dtype == batch["index"].dtype == np.int32


def test_a_batch_larger_than_the_training_set_is_rejected(small):
    with pytest.raises(UserError, match="batch_size 501 is larger than the 500 training"):
        next(train_batches(small, 501, seed=0, view=view_of()))


def test_a_picture_that_breaks_during_training_is_named(picture_folder):
    dataset = open_dataset(f"folder:{picture_folder}", None, 0)
    broken = picture_folder / "train" / "dog" / "7.jpg"
    broken.write_bytes(b"")
    with pytest.raises(UserError, match=f"broken picture {broken} .it is empty.: repair or remove"):
        take(train_batches(dataset, 8, seed=0, view=view_of(size=(16, 16), channels=3)), 3)


@pytest.mark.parametrize("from_disk", [False, True])
def test_the_shards_of_a_batch_are_the_whole_batch(small, picture_folder, from_disk):
    dataset = open_dataset(f"folder:{picture_folder}", None, 0) if from_disk else small
    size = 4 if from_disk else 64
    channels = dataset.image_shape[2]
    view = view_of("inception_crop", size=(16, 16), channels=channels)
    arguments = {"seed": 3, "view": view, "first_step": 2}
    whole = take(train_batches(dataset, size, **arguments), 8)
    halves = [
        take(train_batches(dataset, size, shard=(index, 2), **arguments), 8) for index in (0, 1)
    ]
    for batch, *parts in zip(whole, *halves, strict=True):
        for name in ("image", "label", "index", "epoch", "position"):
            np.testing.assert_array_equal(np.concatenate([x[name] for x in parts]), batch[name])


def test_processes_read_only_their_parts_of_a_large_set_and_the_same_batches_as_one(monkeypatch):
    """With 200 examples in 50 batches of 4."""
    processes = 2
    dataset = open_dataset("fashion_mnist", None, 59_800)
    read = []
    as_dataset = dataset.builder.as_dataset

    def recording(split, **arguments):
        read.append(split)
        return as_dataset(split, **arguments)

    monkeypatch.setattr(dataset.builder, "as_dataset", recording)
    monkeypatch.setattr(TfdsDataset, "fits_in_memory", lambda _: False)
    arguments = {"seed": 3, "view": view_of(), "first_step": 20}
    steps = 40  # into the second epoch

    def batches(**shard):
        read.clear()
        taken = take(train_batches(dataset, 4, **arguments, **shard), steps)
        return taken, {split for split in read if split.startswith("train")}

    whole, everything = batches()
    shards = [batches(shard=(index, processes)) for index in range(processes)]
    for batch, *parts in zip(whole, *(taken for taken, _ in shards), strict=True):
        for name in ("image", "label", "index", "epoch", "position"):
            np.testing.assert_array_equal(np.concatenate([x[name] for x in parts]), batch[name])
    assert set.union(*(of_one for _, of_one in shards)) == everything
    assert sum(len(of_one) for _, of_one in shards) == len(everything)


def test_every_epoch_of_a_large_set_has_every_example_once(monkeypatch):
    dataset = open_dataset("fashion_mnist", None, 59_798)  # 202 examples: parts of 50 and 51
    images, _ = dataset.arrays("train")
    expected = collections.Counter(image.tobytes() for image in images)
    monkeypatch.setattr(TfdsDataset, "fits_in_memory", lambda _: False)
    batches = take(train_batches(dataset, 4, seed=0, view=view_of()), 100)  # epochs of 50 batches
    for epoch in (batches[:50], batches[50:]):
        seen = collections.Counter(image.tobytes() for batch in epoch for image in batch["image"])
        assert seen <= expected
        assert seen.total() == 200
    assert not same(batches[:50], batches[50:])


@pytest.mark.parametrize(
    ("batch_size", "processes", "parts"),
    [(768, 1, 16), (768, 16, 16), (96, 8, 16), (8, 4, 8), (96, 32, 32), (96, 3, 3), (5, 1, 1)],
)
def test_the_number_of_parts_depends_on_the_processes_only_if_it_must(batch_size, processes, parts):
    assert number_of_parts(batch_size, processes) == parts
    assert parts % processes == 0
    assert batch_size % parts == 0


@pytest.mark.parametrize("from_disk", [False, True])
def test_the_shards_evaluate_every_example_once(small, picture_folder, from_disk):
    dataset = open_dataset(f"folder:{picture_folder}", None, 0) if from_disk else small
    # A shard of the 10 test examples lacks one of three rows.
    split, size = ("test", 8) if from_disk else ("train", 96)
    view = eval_view_of(size=(16, 16), channels=dataset.image_shape[2])
    shards = [
        take(eval_batches(dataset, split, size, view=view, shard=(index, 4)), 99)
        for index in range(4)
    ]
    assert len({len(batches) for batches in shards}) == 1
    whole = take(eval_batches(dataset, split, size, view=view), 99)
    of_one, of_four = (
        [
            (int(label), image.tobytes())
            for batch in batches
            for image, label, mask in zip(
                batch["image"], batch["label"], batch["mask"], strict=True
            )
            if mask
        ]
        for batches in (whole, itertools.chain(*shards))
    )
    assert of_one == of_four
    assert len(of_one) == dataset.num_examples(split)


def test_repeated_augmentation_of_a_large_set_shows_each_picture_in_some_epoch(monkeypatch):
    dataset = open_dataset("fashion_mnist", None, 59_800)  # 200 examples of one file
    images, _ = dataset.arrays("train")
    monkeypatch.setattr(TfdsDataset, "fits_in_memory", lambda _: False)
    batches = take(train_batches(dataset, 2, seed=0, view=view_of(), repeats=2), 2 * 100)
    shown = [image.tobytes() for batch in batches for image in batch["image"]]
    assert {image.tobytes() for image in images} == set(shown)
    assert set(collections.Counter(shown).values()) == {2}


def test_repeated_augmentation_shows_each_picture_in_a_row_and_each_time_anew(small):
    view = view_of("inception_crop")
    for batch in take(train_batches(small, 48, seed=2, view=view, repeats=4), 10):
        groups = batch["index"].reshape(-1, 4)
        assert (groups == groups[:, :1]).all()
        cropped = batch["image"].reshape(-1, 4, *batch["image"].shape[1:])
        assert np.mean([np.array_equal(four[0], four[1]) for four in cropped]) < 0.2
    (rows,) = take(train_batches(small, 500, seed=2, view=view_of(), repeats=4), 1)
    assert len(np.unique(rows["image"], axis=0)) == 125  # a quarter of the pictures


ENDS_WHILE_IT_READS = """
import sys
from mnv2.data import open_dataset, train_batches
from tests.views import view_of
view = view_of("resized_crop", size=(224, 224), channels=3)
batches = train_batches(open_dataset(sys.argv[1]), 8, seed=0, view=view)
next(batches)
"""


def test_a_process_ends_while_batches_are_prepared(picture_folder):
    command = [sys.executable, "-c", ENDS_WHILE_IT_READS, f"folder:{picture_folder}"]
    assert subprocess.run(command, timeout=60, check=True).returncode == 0
