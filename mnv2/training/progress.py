"""How far training or an evaluation is, as a value that can be shown or sent."""

from collections.abc import Callable
from typing import NamedTuple

from mnv2.runtime.terminal import format_seconds, waiting_for_input
from mnv2.runtime.throughput import Stopwatch


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
