"""How far training or an evaluation is: a stopwatch, and a value that can be shown or sent."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mnv2.runtime.terminal import format_seconds, waiting_for_input


class Stopwatch:
    """Times training steps alone.

    The clock is stopped during compilation, evaluation and saving. A resumed run starts from the
    `seconds` that it had trained for and the `steps` that took them; its rate counts only the steps
    of this process. `first_start_seconds` passed until the first start, 0 before it.
    """

    def __init__(self, batch_size: int):
        self.batch_size, self.seconds, self.steps = batch_size, 0.0, 0
        self.first_start_seconds, self._created = 0.0, time.perf_counter()
        self._timed_steps, self._timed_seconds, self._waited_seconds = 0, 0.0, 0.0
        self._since: tuple[float, int] | None = None
        self._latest = 0.0

    def start(self, step: int) -> None:
        """Starts the clock. Every step before `step` must be done on the devices."""
        now = time.perf_counter()
        self.first_start_seconds = self.first_start_seconds or now - self._created
        self._since = (now, step)

    def stop(self, step: int) -> None:
        """Stops the clock. Every step before `step` must be done on the devices."""
        if self._since is None:
            return
        began, first = self._since
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self._timed_seconds += elapsed
        self._timed_steps += step - first
        self.steps += step - first
        self._since = None
        if step > first:
            self._latest = (step - first) * self.batch_size / elapsed

    @contextlib.contextmanager
    def fetching(self, idle: Callable[[], bool]) -> Iterator[None]:
        """Counts the time for which the devices wait while the next batch is fetched.

        `idle()` tells whether the devices have finished all their work. If they have when the batch
        is there, the whole time of that fetch counts.
        """
        asked = time.perf_counter()
        yield
        if self._since is not None and idle():
            self._waited_seconds += time.perf_counter() - asked

    @property
    def waiting(self) -> float:
        """The share of the timed seconds in which devices waited for input, in [0, 1]."""
        return self._waited_seconds / self._timed_seconds if self._timed_seconds else 0.0

    @property
    def images_per_second(self) -> float:
        """Images per second over the timed steps of this process; 0 before there are any."""
        if not self._timed_seconds:
            return 0.0
        return self._timed_steps * self.batch_size / self._timed_seconds

    @property
    def latest_images_per_second(self) -> float:
        """Images per second while the clock last ran, which shows that a run has become slower."""
        return self._latest

    def seconds_left(self, steps: int) -> float:
        """The time that `steps` more steps will take at this rate; 0 if no rate is known yet."""
        rate = self.images_per_second
        return steps * self.batch_size / rate if rate else 0.0


class Progress(NamedTuple):
    """How far training or an evaluation is.

    loss     of the steps since the last report; None if all of them were skipped
    waiting  the share of the time in which the devices waited for input
    """

    step: int
    steps: int
    loss: float | None
    images_per_second: float
    seconds_left: float
    waiting: float = 0.0

    def __str__(self) -> str:
        loss = "all skipped" if self.loss is None else f"loss {self.loss:.3f}"
        return (
            f"step {self.step}/{self.steps}  {loss}  "
            f"{self.images_per_second:,.0f} images/s  {format_seconds(self.seconds_left)} left"
            f"{waiting_for_input(self.waiting)}"
        )


# Takes what a run does now: its progress, or another activity such as "compiling".
type Show = Callable[[Progress | str], None]


def progress(step: int, steps: int, loss: float | None, stopwatch: Stopwatch) -> Progress:
    """Returns how far `step` of `steps` is, with the rate of a stopwatch."""
    left = stopwatch.seconds_left(steps - step)
    rate = stopwatch.images_per_second
    return Progress(step, steps, loss, rate, left, stopwatch.waiting)
