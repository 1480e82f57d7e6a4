"""The order of examples, and which data sets lie on the devices."""

import numpy as np
import pytest

from mnv2.data import Order, fits_on_device, open_dataset
from tests.views import view_of


def take(count, *, first_step=0, **arguments):
    order = Order(**arguments)
    return [order.rows_at(step) for step in range(first_step, first_step + count)]


def same(one, other):
    return all(
        a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(one, other, strict=True)
    )


def test_what_a_run_sees_is_a_function_of_seed_epoch_and_position():
    arguments = {"examples": 50, "batch_size": 8, "seed": 3}
    whole = take(15, **arguments)  # two epochs of six batches and a half
    for first_step in (0, 1, 5, 6, 13):
        assert same(take(15 - first_step, first_step=first_step, **arguments), whole[first_step:])
    assert not same(whole[:6], whole[6:12])
    assert not same(take(1, **{**arguments, "seed": 4}), whole[:1])
    for number, rows in enumerate(whole):
        epoch, step = divmod(number, 6)
        assert (rows["epoch"] == epoch).all()
        np.testing.assert_array_equal(rows["position"], 8 * step + np.arange(8))


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_several_processes_are_those_of_one(processes):
    arguments = {"examples": 50, "batch_size": 8, "seed": 3}
    shards = [take(14, shard=(index, processes), **arguments) for index in range(processes)]
    together = [
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        for parts in zip(*shards, strict=True)
    ]
    assert same(together, take(14, **arguments))


def test_only_what_the_host_does_not_change_lies_on_the_devices(fashion_mnist, picture_folder):
    assert fits_on_device(fashion_mnist, view_of("pad_crop|flip|rand_augment"))
    assert not fits_on_device(fashion_mnist, view_of(size=(32, 32)))
    assert not fits_on_device(fashion_mnist, view_of(channels=3))
    assert not fits_on_device(fashion_mnist, view_of("inception_crop"))
    pictures = open_dataset(f"folder:{picture_folder}", None, 0)
    assert not fits_on_device(pictures, view_of(size=(16, 16), channels=3))
