"""Timing by turns: what is compared runs one after the other, again and again."""

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

Step = Callable[[], Any]  # does its work and waits for its end


def times(step: Step, seconds: float) -> Iterator[float]:
    """The seconds of each call that begins within `seconds`; of one call at least."""
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        step()
        now = time.perf_counter()
        yield now - began
        if now >= end:
            return


def in_turns[Name: Hashable](
    steps: Mapping[Name, Step], rounds: int, seconds: float, say: Callable[[str], None]
) -> dict[Name, list[float]]:
    """The median seconds of each step in each round, after a call that is not counted.

    Interleaved, so that a machine whose speed wavers is as slow for one as for the other.
    """
    for step in steps.values():
        step()
    medians: dict[Name, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        for name, step in steps.items():
            say(f"round {i + 1}/{rounds}  {name}")
            medians[name].append(statistics.median(times(step, seconds)))
    return medians
