"""What a person sees of a sweep while it is executed: in a terminal, or as lines in a file."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from mnv2.runtime.terminal import format_seconds, waiting_for_input
from mnv2.sweeps.checks import accuracy, final_split
from mnv2.sweeps.plan import Outcome, Run
from mnv2.training.checks import FINAL_SPLITS
from mnv2.training.progress import Progress

PER_SECOND = 4  # times that the terminal is rewritten
MOST_WORKERS = 8  # lines of workers in a terminal


class Display:
    """Shows the runs that are executed, one line per worker, and the results so far.

    Each run that ends is a line that stays. The rest is rewritten in place, and shown only in a
    terminal. `results` are those of earlier commands, by arm and seed. `left` is the number of
    seconds that the sweep still takes; 0 if it is not known.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        waiting: Sequence[Run],
        results: Mapping[str, Mapping[int, Mapping[str, Any]]],
        *,
        workers: int,
        shown: bool = True,
    ):
        self._console = Console(
            highlight=False, emoji=False, markup=False, quiet=not shown, soft_wrap=True
        )
        self._total, self._ended = len(runs), len(runs) - len(waiting)
        self._workers: list[_Line] = [_Line() for _ in range(workers)]
        self._accuracies = {
            one.arm: [accuracy(found) for found in results.get(one.arm, {}).values()]
            for one in runs
        }
        self._seeds = {one.arm: sum(other.arm == one.arm for other in runs) for one in runs}
        self._split = runs[0].settings.final_split if runs else FINAL_SPLITS[0]
        self._began, self._begun_with = time.perf_counter(), self._ended
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self.left = 0.0
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            refresh_per_second=PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> "Display":
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def say(self, text: str, *, once: bool = False) -> None:
        """Prints a line that stays; with `once`, unless it was printed before."""
        with self._lock:
            if once and text in self._said:
                return
            self._said.add(text)
        self._console.print(text)

    def started(self, worker: int, one: Run) -> None:
        """Shows that a worker executes a run."""
        self._workers[worker] = _Line(one, "starting")

    def now(self, worker: int, now: Progress | str) -> None:
        """Shows what a worker does."""
        self._workers[worker].now = now

    def idle(self, worker: int, why: str = "") -> None:
        """Shows that a worker executes nothing."""
        self._workers[worker] = _Line(now=why)

    def ended(self, worker: int, outcome: Outcome) -> None:
        """Prints how the run of a worker ended."""
        one = self._workers[worker].run
        assert one is not None
        self._workers[worker] = _Line()
        self._ended += 1
        label = f"[{self._ended}/{self._total}] {one.name}".ljust(28)
        if outcome.failure is not None:
            self.say(f"{label}  failed: {outcome.failure}{self._left()}")
        elif outcome.holder is not None:
            self.say(f"{label}  is being done by {outcome.holder}")
        elif outcome.result is not None:
            self._accuracies[one.arm].append(accuracy(outcome.result))
            self.say(f"{label}  {_describe(outcome.result, outcome.seconds)}{self._left()}")

    def _left(self) -> str:
        done = self._ended - self._begun_with
        left = self.left
        if not left and done:  # nobody knows better
            left = (time.perf_counter() - self._began) / done * (self._total - self._ended)
        return f"  {format_seconds(left)} left" if left else ""

    def _render(self) -> RenderableType:
        lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("run", "step", "loss", "images/s", "left"):
            lines.add_column(title, justify="left" if title == "run" else "right", no_wrap=True)
        for line in self._workers[:MOST_WORKERS]:
            if line.run or line.now:
                lines.add_row(*line.cells())
        parts: list[RenderableType] = [lines]
        if len(self._workers) > MOST_WORKERS:
            parts.append(f"and {len(self._workers) - MOST_WORKERS} workers more")
        if any(self._accuracies.values()):
            parts += ["", self._results()]
        spent = format_seconds(time.perf_counter() - self._began)
        parts += ["", f"{self._ended} of {self._total} runs done in {spent}{self._left()}"]
        return Group(*parts)

    def _results(self) -> Table:
        """Returns the table so far: the mean of each arm's finished seeds."""
        results = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for title in ("arm", f"{self._split} top-1 %", "seeds"):
            results.add_column(title, justify="left" if title == "arm" else "right")
        rows = [(arm, found) for arm, found in self._accuracies.items() if found]
        room = max(3, self._console.height - len(self._workers[:MOST_WORKERS]) - 10)
        for arm, found in rows[:room]:
            mean = sum(found) / len(found)
            results.add_row(arm, f"{mean:.2f}", f"{len(found)} of {self._seeds[arm]}")
        if len(rows) > room:
            results.add_row(f"and {len(rows) - room} arms more", "", "")
        return results


class _Line:
    """What a worker does."""

    def __init__(self, run: Run | None = None, now: Progress | str = ""):
        self.run, self.now = run, now

    def cells(self) -> tuple[str, ...]:
        name = self.run.name if self.run else ""
        if isinstance(self.now, str):
            return name, self.now, "", "", ""
        now = self.now
        return (
            name,
            f"{now.step}/{now.steps}",
            "skipped" if now.loss is None else f"{now.loss:.3f}",
            f"{now.images_per_second:,.0f}",
            format_seconds(now.seconds_left),
        )


def _describe(result: Mapping[str, Any], seconds: float) -> str:
    """Describes a finished run in one line."""
    skipped = result.get("skipped_steps", 0)
    return (
        f"{final_split(result)} {accuracy(result):5.2f} %  "
        f"{result['images_per_second']:6,.0f} images/s  {format_seconds(seconds):>6}"
        f"{waiting_for_input(result.get('waiting_for_input', 0.0))}"
        f"{f'  {skipped} steps skipped, not finite' if skipped else ''}"
    )
