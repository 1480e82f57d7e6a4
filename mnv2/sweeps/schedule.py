"""In which order several workers execute runs, and how long that will take."""

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mnv2.analysis import complexity
from mnv2.sweeps.plan import Run
from mnv2.training.devices import Devices
from mnv2.training.setup import set_up

ENOUGH = 0.1  # the part of a run that is done before its rate tells how long the whole run takes


def multiply_adds(
    runs: Iterable[Run], check: Callable[[], None] = lambda: None, devices: Devices = None
) -> dict[str, float]:
    """Returns the multiply-adds of each run's training images, forward only, by the run's name.

    Each run will compute on as many devices as `devices` has.

    Traces the network of each arm, which takes a second, and calls `check` before it.
    """
    of_arm: dict[str, int] = {}
    work = {}
    for one in runs:
        if one.arm not in of_arm:
            check()
            setup = set_up(one.settings, devices)
            shape = (*setup.view.size, setup.image_shape[2])  # of training
            of_arm[one.arm] = complexity.multiply_adds(setup.model, shape)
        work[one.name] = float(of_arm[one.arm]) * one.settings.batch_size * one.steps
    return work


def longest_first(runs: Sequence[Run], work: Mapping[str, float]) -> list[Run]:
    """Sorts runs by their multiply-adds: no worker is then left with a long run at the end."""
    return sorted(runs, key=lambda one: -work[one.name])


class Duration(NamedTuple):
    """How long a run takes, in seconds.

    training  its steps after the first one
    rest      all else: its start and its evaluations
    start     the part of `rest` until its first step is done; other runs of the arm, which need not
              compile, take almost nothing
    """

    training: float
    rest: float
    start: float


class Forecast:
    """How long the rest of a sweep will take, from the durations of its runs so far.

    A run trains as long as others of its arm did. For an arm that is new, that is a straight line
    over the multiply-adds, through those that are known. What a run takes besides is the mean of
    other runs: of those that were first in their arm, which compiled, or of the later ones.
    """

    def __init__(self, work: Mapping[str, float]):
        self._work = work
        self._known: dict[str, Duration] = {}  # by the name of the run, in order
        self._ends: dict[str, float] = {}  # seconds from the start of a running run to its end

    def finished(self, name: str, duration: Duration) -> None:
        """Notes how long a run took."""
        self._known[name] = duration

    def running(
        self, name: str, seconds: float, done: float, since: tuple[float, float], before: float
    ) -> None:
        """Notes how far a run is: a part `done` of it after `seconds`.

        `since` are the seconds and the part done at a moment from which it has trained, since an
        earlier command may have done a part. Training began after `before` seconds.
        """
        part = done - since[1]
        if part >= ENOUGH:
            whole = (seconds - since[0]) / part
            self.finished(name, Duration(whole, before, before))
            self._ends[name] = since[0] + whole * (1 - since[1])

    def left(self, running: Mapping[str, float], waiting: Sequence[str], workers: int) -> float:
        """Returns the seconds until the last run ends; 0 as long as nothing is known.

        `running` has the seconds that each running run has taken. `waiting` runs are started in
        their order, each by the first worker that is free.
        """
        if not self._known:
            return 0.0
        free = [
            max(0.0, self._ends.get(name, self._expected(name)) - spent)
            for name, spent in running.items()
        ]
        free += [0.0] * (workers - len(free))
        heapq.heapify(free)
        seen = {_arm(name) for name in (*self._known, *running)}
        for name in waiting:
            heapq.heappush(free, heapq.heappop(free) + self._expected(name, _arm(name) in seen))
            seen.add(_arm(name))
        return max(free)

    def _expected(self, name: str, later: bool = False) -> float:
        """Returns how long a run takes; `later` says that others of its arm were started before."""
        if name in self._known:
            return self._known[name].training + self._known[name].rest
        return self._training(name) + self._rest(later)

    def _training(self, name: str) -> float:
        same = [x.training for other, x in self._known.items() if _arm(other) == _arm(name)]
        if same:
            return statistics.fmean(same)
        work = np.array([self._work[other] for other in self._known])
        seconds = np.array([x.training for x in self._known.values()])
        if np.ptp(work) > 0:
            slope, start = np.polyfit(work, seconds, 1)
            if slope >= 0 and start >= 0:
                return float(start + slope * self._work[name])
        return float(seconds.sum() / work.sum() * self._work[name])

    def _rest(self, later: bool) -> float:
        firsts: list[Duration] = []
        laters: list[Duration] = []
        seen: set[str] = set()
        for name, duration in self._known.items():
            (laters if _arm(name) in seen else firsts).append(duration)
            seen.add(_arm(name))
        if not later:
            return statistics.fmean(x.rest for x in firsts)
        if laters:
            return statistics.fmean(x.rest for x in laters)
        return statistics.fmean(x.rest - x.start for x in firsts)


def _arm(name: str) -> str:
    return name.rpartition("/")[0]
