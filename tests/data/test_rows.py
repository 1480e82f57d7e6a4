import itertools

import numpy as np
import pytest

from mnv2.data import View, fits_on_device, open_dataset, train_rows

NAMES = {
    "none": {"index"},
    "flip": {"index", "mirrored"},
    "crop_flip": {"index", "mirrored", "top", "left"},
}


def take(count, **arguments):
    return list(itertools.islice(train_rows(**arguments), count))


def same(one, other):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("augmentation", NAMES)
def test_what_a_run_sees_is_a_function_of_seed_epoch_and_position(augmentation):
    arguments = {"examples": 50, "batch_size": 8, "seed": 3, "augmentation": augmentation}
    whole = take(15, **arguments)  # two epochs of six batches and a half
    assert whole[0].keys() == NAMES[augmentation]
    for first_step in (0, 1, 5, 6, 13):
        assert same(take(15 - first_step, first_step=first_step, **arguments), whole[first_step:])
    assert not same(whole[:6], whole[6:12])
    assert not same(take(1, **{**arguments, "seed": 4}), whole[:1])


def test_every_epoch_has_every_example_once():
    batches = take(20, examples=80, batch_size=8, seed=0)
    for epoch in (batches[:10], batches[10:]):
        assert sorted(np.concatenate([rows["index"] for rows in epoch])) == list(range(80))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_several_processes_are_those_of_one(processes):
    arguments = {"examples": 50, "batch_size": 8, "seed": 3, "augmentation": "crop_flip"}
    shards = [take(14, shard=(index, processes), **arguments) for index in range(processes)]
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert same(together, take(14, **arguments))


def test_crops_reach_every_position_and_half_of_the_images_are_mirrored():
    (rows,) = take(1, examples=5000, batch_size=5000, seed=0, augmentation="crop_flip", pad=2)
    for name in ("top", "left"):
        assert sorted(np.unique(rows[name])) == [0, 1, 2, 3, 4]
        assert np.bincount(rows[name]).min() > 900
    assert 0.47 < rows["mirrored"].mean() < 0.53
    assert abs(np.corrcoef(rows["top"], rows["left"])[0, 1]) < 0.05


def test_only_what_a_device_can_compute_lies_on_it(fashion_mnist, picture_folder):
    assert fits_on_device(fashion_mnist, View((28, 28), "crop_flip", channels=1))
    assert fits_on_device(fashion_mnist, View((28, 28), "none", channels=0))
    assert not fits_on_device(
        fashion_mnist, View((32, 32), "none", channels=1)
    )  # resized on the host
    assert not fits_on_device(fashion_mnist, View((28, 28), "none", channels=3))
    assert not fits_on_device(fashion_mnist, View((28, 28), "inception", channels=1))
    pictures = open_dataset(f"folder:{picture_folder}", None, 0)
    assert not fits_on_device(pictures, View((16, 16), "none", channels=3))
