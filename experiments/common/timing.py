"""Measures steps: their time in turns, round after round, and the peak of resident memory."""

import contextlib
import multiprocessing
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from mnv2.runtime.terminal import StatusLine

Step = Callable[[], Any]  # does its work and returns when the work is done


def times(step: Step, seconds: float) -> Iterator[float]:
    """Calls `step` until `seconds` are over, at least once. Yields the seconds of each call."""
    end = time.perf_counter() + seconds
    while True:
        began = time.perf_counter()
        step()
        now = time.perf_counter()
        yield now - began
        if now >= end:
            return


def in_turns[Name: Hashable](
    steps: Mapping[Name, Step], rounds: int, seconds: float, label: str
) -> dict[Name, list[float]]:
    """Times each step in each round, and returns the median seconds per round.

    The steps take turns, so that a change in the machine's speed affects all of them alike. Each
    step runs once before the first round; that call is not counted. `label` says what is timed.
    """
    line = StatusLine(label)
    for name, step in steps.items():
        line.say(f"first call  {name}")
        step()
    medians: dict[Name, list[float]] = {name: [] for name in steps}
    for i in range(rounds):
        for name, step in steps.items():
            line.say(f"round {i + 1}/{rounds}  {name}")
            medians[name].append(statistics.median(times(step, seconds)))
    line.clear()
    return medians


def in_process[Result](function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a new process, in which JAX has not begun and no memory is in use."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as process:
        return process.submit(function, *arguments).result()


def reset_peak_memory() -> None:
    """Lowers this process's peak to what is resident now, if the kernel supports it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_memory() -> int:
    """Returns the peak since the reset, in bytes; 0 if the kernel does not report it."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
