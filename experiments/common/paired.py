"""Differences between arms that were trained with the same seeds."""

from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import Sweep


def difference(sweep: Sweep, arm: str, other: str) -> Estimate | None:
    """Estimates how much better an arm is than another, in points, paired by seed."""
    accuracies, others = sweep.accuracies(arm), sweep.accuracies(other)
    return Estimate.of([accuracies[seed] - others[seed] for seed in accuracies if seed in others])
