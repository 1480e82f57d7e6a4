"""In which order several workers execute runs, and how long that will take."""

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from mnv2.analysis import complexity
from mnv2.sweeps.plan import Run
from mnv2.training.setup import set_up

ENOUGH = 0.1  # the part of a run that is done before its rate tells how long the whole run takes


def multiply_adds(
    runs: Iterable[Run], check: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Returns the multiply-adds of each run's training images, forward only, by the run's name.

    Traces the network of each arm, which takes a second, and calls `check` before it.
    """
    of_arm: dict[str, int] = {}
    work = {}
    for one in runs:
        if one.arm not in of_arm:
            check()
            setup = set_up(one.settings)
            of_arm[one.arm] = complexity.multiply_adds(setup.model, setup.image_shape)
        work[one.name] = float(of_arm[one.arm]) * one.settings.batch_size * one.steps
    return work


def longest_first(runs: Sequence[Run], work: Mapping[str, float]) -> list[Run]:
    """Sorts runs by their multiply-adds: no worker is then left with a long run at the end."""
    return sorted(runs, key=lambda one: -work[one.name])


class Forecast:
    """How long the rest of a sweep will take, from the durations of its runs so far.

    A run takes as long as others of its arm did. The duration of a run of another arm is a straight
    line over its multiply-adds, through those that are known.
    """

    def __init__(self, work: Mapping[str, float]):
        self._work = work
        self._seconds: dict[str, float] = {}  # by the name of the run

    def finished(self, name: str, seconds: float) -> None:
        """Notes how long a run took."""
        self._seconds[name] = seconds

    def running(self, name: str, seconds: float, before: float, done: float) -> None:
        """Notes how far a run is: a part `done` of it after `seconds`, `before` which it began."""
        if done >= ENOUGH:
            self._seconds[name] = before + (seconds - before) / done

    def left(self, running: Mapping[str, float], waiting: Sequence[str], workers: int) -> float:
        """Returns the seconds until the last run ends; 0 as long as nothing is known.

        `running` has the seconds that each running run has taken. `waiting` runs are started in
        their order, each by the first worker that is free.
        """
        if not self._seconds:
            return 0.0
        free = [max(0.0, self._expected(name) - spent) for name, spent in running.items()]
        free += [0.0] * (workers - len(free))
        heapq.heapify(free)
        for name in waiting:
            heapq.heappush(free, heapq.heappop(free) + self._expected(name))
        return max(free)

    def _expected(self, name: str) -> float:
        if name in self._seconds:
            return self._seconds[name]
        arm = name.rpartition("/")[0]
        same = [x for other, x in self._seconds.items() if other.rpartition("/")[0] == arm]
        if same:
            return statistics.fmean(same)
        work = np.array([self._work[other] for other in self._seconds])
        seconds = np.array(list(self._seconds.values()))
        if np.ptp(work) > 0:
            slope, start = np.polyfit(work, seconds, 1)
            if slope >= 0 and start >= 0:
                return float(start + slope * self._work[name])
        return float(seconds.sum() / work.sum() * self._work[name])
