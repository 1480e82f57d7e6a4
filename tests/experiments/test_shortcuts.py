import pytest

from experiments import shortcuts


def test_effects_are_paired_by_seed():
    accuracies = {
        "linear": {0: 85.0, 1: 84.0, 2: 70.0},
        "relu6": {0: 82.0, 1: 80.0},
        "linear_alone": {0: 83.0, 1: 82.0},
        "relu6_alone": {0: 75.0, 1: 75.0, 5: 1.0},
    }
    (_, with_), (_, without), (_, difference) = shortcuts.effects(accuracies)
    assert (with_.mean, without.mean, difference.mean) == (-3.5, -7.5, 4.0)
    assert {with_.count, without.count, difference.count} == {2}
    # Differences of 5 and 3: half-width 12.706 * sqrt(2) / sqrt(2).
    assert difference.half_width == pytest.approx(12.706, rel=1e-4)


def test_the_arms_differ_only_in_bottleneck_and_shortcut():
    assert len(shortcuts.ARMS) == 4
    assert {field for _, changes in shortcuts.ARMS for field in changes} == {
        "model.bottleneck",
        "model.shortcut",
    }
