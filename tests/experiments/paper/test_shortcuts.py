import pytest

from experiments.paper import shortcuts


def test_effects_are_paired_by_seed():
    accuracies = {
        "linear": {0: 85.0, 1: 84.0, 2: 83.0, 3: 70.0},
        "relu6": {0: 82.0, 1: 80.0, 2: 78.0},
        "linear_alone": {0: 83.0, 1: 82.0, 2: 81.0},
        "relu6_alone": {0: 75.0, 1: 75.0, 2: 72.0, 5: 1.0},
    }
    with_, without, difference = shortcuts.effects(accuracies).values()
    assert (with_.mean, without.mean, difference.mean) == (-4.0, -8.0, 4.0)
    assert {with_.count, without.count, difference.count} == {3}
    # Differences of 5, 3 and 4: half-width 4.303 * 1 / sqrt(3).
    assert difference.half_width == pytest.approx(2.484, rel=1e-3)
