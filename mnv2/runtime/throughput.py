"""How far a run is: images a second, the time still to go, and what it waits for."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
NOTICEABLE = 0.05  # share of the time spent waiting for input that is worth a word


class Progress:
    """Times training alone: compilation, evaluation and saving happen while the clock is stopped.

    A restarted run starts with the `seconds` that it had spent; its rate is that of its own steps.
    """

    def __init__(self, label: str, total_steps: int, batch_size: int, seconds: float = 0.0):
        self.label, self.total_steps, self.batch_size = label, total_steps, batch_size
        self.seconds = seconds
        self._timed_steps, self._timed_seconds, self._waited_seconds = 0, 0.0, 0.0
        self._since: tuple[float, int] | None = None
        self._shown = False

    def start(self, step: int) -> None:
        """Starts the clock; every step before `step` is done, and nothing is in flight."""
        self._since = (time.perf_counter(), step)

    def stop(self, step: int) -> None:
        """Stops the clock; every step before `step` is done."""
        if self._since is None:
            return
        began, first = self._since
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self._timed_seconds += elapsed
        self._timed_steps += step - first
        self._since = None

    def watch(self, batches: Iterable[Item], idle: Callable[[], bool]) -> Iterator[Item]:
        """Yields `batches`, counting the time for which they kept idle devices waiting.

        `idle()` says whether the devices have done all they were given. Where they finish while
        the next batch is fetched, the whole of that fetch counts.
        """
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            if self._since is not None and idle():
                self._waited_seconds += time.perf_counter() - asked
            yield batch

    @property
    def waiting(self) -> float:
        """The share of the timed seconds in which devices waited for input."""
        return self._waited_seconds / self._timed_seconds if self._timed_seconds else 0.0

    @property
    def images_per_second(self) -> float:
        """Of this process's timed steps; 0 before there are any."""
        if not self._timed_seconds:
            return 0.0
        return self._timed_steps * self.batch_size / self._timed_seconds

    def show(self, step: int, loss: float) -> None:
        """Shows how far training is."""
        rate = self.images_per_second
        left = (self.total_steps - step) * self.batch_size / rate if rate else 0.0
        self.say(
            f"step {step}/{self.total_steps}  loss {loss:.3f}  {rate:,.0f} images/s  "
            f"{format_seconds(left)} left{waiting_for_input(self.waiting)}"
        )

    def say(self, text: str) -> None:
        """Rewrites one line in a terminal; writes nothing where output is a file."""
        if sys.stdout.isatty():
            line = f"{self.label}  {text}"
            print(f"\r{line[:79]:79}", end="", flush=True)
            self._shown = True

    def clear(self) -> None:
        """Makes room for an ordinary line."""
        if self._shown:
            print(f"\r{'':79}\r", end="", flush=True)
            self._shown = False


def waiting_for_input(share: float) -> str:
    """A word on it where the share of the time is noticeable, else nothing."""
    return f"  {share:.0%} waiting for input" if share > NOTICEABLE else ""


def format_seconds(seconds: float) -> str:
    """45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
