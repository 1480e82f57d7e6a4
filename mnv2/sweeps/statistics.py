"""From the results of a sweep to means, differences and their confidence intervals."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from mnv2.runtime.terminal import warn_once
from mnv2.sweeps.workdir import Sweep

CONFIDENCE = 0.95
POWER = 0.8  # with which a difference is to be found
# Seeds from which an interval is computed. That of two is 12.7 standard errors wide, and has no
# width at all if both happen to be equal.
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval; None from fewer than three.

    The interval is of one arm by itself: `compare_all` has those of all arms together.
    """

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Computes the mean and Student's t interval of `values`; None if there are no values."""
        if not values:
            return None
        mean, count = float(np.mean(values)), len(values)
        if count < FEWEST:
            return cls(mean, None, count)
        error = float(np.std(values, ddof=1)) / count**0.5
        return cls(mean, error * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)), count)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the report says about one arm. Accuracies and differences are in per cent.

    difference  of the means of all seeds to the baseline, in an interval for all arms at once; None
                for the baseline, and without a result of it
    minutes     of training, of all runs
    """

    arm: str
    parameters: int
    multiply_adds: int
    accuracy: Estimate
    difference: Estimate | None
    images_per_second: float | None  # None if no step was timed
    minutes: float


class Simultaneous(NamedTuple):
    """All differences to the baseline as one family.

    differences  of each arm, not paired: with a probability of 95 % all their intervals hold
    detectable   the difference that an arm with so many seeds shows with a probability of 80 %
    """

    differences: dict[str, Estimate]
    detectable: dict[int, float]


def rows(sweep: Sweep, simultaneous: Simultaneous | None = None) -> list[Row]:
    """Returns one row per arm that has a finished run, in the order of the config.

    `simultaneous` is what `compare_all` returns, if it is known. A run whose result cannot be read
    is left out, with a warning.
    """
    for reason in sweep.damaged.values():
        warn_once(f"a run is left out: {reason}")
    simultaneous = simultaneous or compare_all(sweep)
    differences = simultaneous.differences if simultaneous else {}
    return [_row(sweep, arm, differences.get(arm)) for arm, runs in sweep.results.items() if runs]


def compare_all(sweep: Sweep) -> Simultaneous | None:
    """Computes Dunnett's intervals (1955) of all arms with two seeds or more to the baseline.

    All arms share one estimate of the spread between seeds, and differences are not paired: unlike
    Student's intervals, these suppose that all arms spread alike. So the difference is that of the
    means of all seeds, also of those which only one of the two arms has. None if there is nothing
    to compare, or no spread.
    """
    accuracies = {arm: list(sweep.accuracies(arm).values()) for arm in sweep.results}
    several = {arm: values for arm, values in accuracies.items() if len(values) > 1}
    control = several.pop(sweep.baseline, [])
    freedom = sum(len(values) - 1 for values in (*several.values(), control))
    squares = sum(float(np.var(v)) * len(v) for v in (*several.values(), control) if v)
    if not several or not control or not squares:
        return None
    with warnings.catch_warnings():  # a confidence of 94.9 or 95.1 % is near enough
        warnings.filterwarnings("ignore", "Computation of the confidence interval did not converge")
        warnings.filterwarnings("ignore", "Precision loss occurred")  # an arm without any spread
        interval = stats.dunnett(
            *several.values(), control=control, rng=np.random.default_rng(0)
        ).confidence_interval(CONFIDENCE)
    differences, detectable = {}, {}
    for (arm, values), low, high in zip(several.items(), interval.low, interval.high, strict=True):
        count, half_width = len(values), float(high - low) / 2
        differences[arm] = Estimate(float(np.mean(values) - np.mean(control)), half_width, count)
        error = (squares / freedom * (1 / count + 1 / len(control))) ** 0.5
        detectable[count] = half_width + error * float(stats.t.ppf(POWER, freedom))
    return Simultaneous(differences, dict(sorted(detectable.items())))


def prediction_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns where one more value would fall with a probability of 95 %.

    None from less than three values: from two it would be as wide as 15 standard deviations.
    """
    estimate = Estimate.of(values)
    if estimate is None or estimate.half_width is None:
        return None
    reach = estimate.half_width * (1 + estimate.count) ** 0.5
    return estimate.mean - reach, estimate.mean + reach


def _row(sweep: Sweep, arm: str, difference: Estimate | None) -> Row:
    runs, accuracies = sweep.results[arm], list(sweep.accuracies(arm).values())
    accuracy = Estimate.of(accuracies)
    assert accuracy is not None
    baseline = list(sweep.accuracies(sweep.baseline).values())
    if difference is None and arm != sweep.baseline and baseline:
        mean = accuracy.mean - float(np.mean(baseline))
        difference = Estimate(mean, None, accuracy.count)
    first = next(iter(runs.values()))
    rates = [result["images_per_second"] for result in runs.values() if result["images_per_second"]]
    return Row(
        arm,
        first["parameters"],
        first["multiply_adds"],
        accuracy,
        difference,
        float(np.median(rates)) if rates else None,
        sum(result["train_seconds"] for result in runs.values()) / 60,
    )
