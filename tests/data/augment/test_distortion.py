import numpy as np
import pytest
import tensorflow as tf

from mnv2.data.augment import distort, erase
from mnv2.data.augment.distortion import _ORDERS
from tests.data.augment.test_operations import photograph


@pytest.mark.parametrize("mode", ["fast", "full"])
def test_colours_are_distorted_as_slim_does_within_its_limits(mode):
    """slim adds at most 32/255 to all values, and multiplies distances to gray by 0.5 to 1.5."""
    gray = tf.fill((4, 4, 3), 100.0)
    shifts = []
    for number in range(40):
        changed = distort(gray, tf.constant([3, number]), mode).numpy()
        assert np.ptp(changed) < 0.01  # gray stays gray, in any saturation and hue
        shifts.append(changed.mean() - 100)
    assert -32 <= min(shifts) < -15
    assert 15 < max(shifts) <= 32
    picture = tf.constant(photograph()[200:240, 200:250])
    one, again, other = (distort(picture, tf.constant([3, n]), mode).numpy() for n in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1
    assert one.min() >= 0
    assert one.max() <= 255


def test_the_orders_are_those_of_slim():
    assert [order[0] for order in _ORDERS["full"]] == [
        "brightness",
        "saturation",
        "contrast",
        "hue",
    ]
    assert all(set(order) == {"brightness", "saturation"} for order in _ORDERS["fast"])
    assert all(len(set(order)) == 4 for order in _ORDERS["full"])


def test_an_erased_rectangle_has_the_area_and_aspect_of_the_paper():
    picture = tf.fill((60, 80, 3), tf.constant(255, tf.uint8))
    erased = tf.function(lambda seed: erase(picture, seed, 0.5, (1, 2, 3)))
    areas = []
    for number in range(200):
        result = erased(tf.constant([5, number])).numpy()
        holes = (result != 255).any(-1)
        if not holes.any():
            continue
        np.testing.assert_array_equal(np.unique(result[holes], axis=0), [[1, 2, 3]])
        rows, columns = holes.any(1).sum(), holes.any(0).sum()
        assert rows * columns == holes.sum()  # a rectangle
        assert 0.25 < rows / columns < 4
        areas.append(holes.mean())
    assert 70 < len(areas) < 130  # half of 200
    assert 0.015 < min(areas) < 0.05
    assert 0.25 < max(areas) < 0.34
    assert erase(picture, tf.constant([5, 0]), 0.0, (1, 2, 3)) is picture
