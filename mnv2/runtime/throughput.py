"""A stopwatch for training: images per second, and how much of the time is spent on waiting."""

import contextlib
import time
from collections.abc import Callable, Iterator


class Stopwatch:
    """Times training steps alone.

    The clock is stopped during compilation, evaluation and saving. A resumed run starts from the
    `seconds` that it had trained for and the `steps` that took them; its rate counts only the steps
    of this process.
    """

    def __init__(self, batch_size: int, seconds: float = 0.0, steps: int = 0):
        self.batch_size, self.seconds, self.steps = batch_size, seconds, steps
        self._timed_steps, self._timed_seconds, self._waited_seconds = 0, 0.0, 0.0
        self._since: tuple[float, int] | None = None
        self._latest = 0.0

    def start(self, step: int) -> None:
        """Starts the clock. Every step before `step` must be done on the devices."""
        self._since = (time.perf_counter(), step)

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

        `idle()` tells whether the devices have finished all their work. If they finish while it is
        fetched, the whole time of that fetch counts.
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
