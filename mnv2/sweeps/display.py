"""What a person sees of a sweep while it is executed: in a terminal, or as lines in a file."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from mnv2.runtime.terminal import WAITING_REMEDY, StatusLine, format_seconds, waiting_for_input
from mnv2.sweeps.plan import Run
from mnv2.sweeps.workdir import accuracy, final_split


class Display:
    """Shows the runs that are executed, one line per copy.

    Each run that ends is a line that stays. The rest is rewritten in place, and shown only in a
    terminal, from `show` on.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, emoji=False, markup=False, soft_wrap=True)
        self._lock, self._line = threading.Lock(), StatusLine("")
        self._said: set[str] = set()
        self._copies: dict[int, Mapping[str, Any]] = {}
        self._runs: dict[str, Run] = {}
        self._done: dict[str, int] = {}  # the steps that each run had when the command began
        self._ended: set[str] = set()
        self._seconds_per_step: dict[str, float] = {}  # by arm
        self._began = time.monotonic()
        self._live = Live(console=self._console, get_renderable=self._render, transient=True)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, runs: Sequence[Run]) -> None:
        """Begins to show runs, some of which may be finished already."""
        self._runs = {one.name: one for one in runs}
        self._done = {one.name: one.trained or 0 for one in runs}
        self._ended = {one.name for one in runs if one.finished}
        self._line.clear()
        if self._console.is_terminal and len(self._ended) < len(self._runs):
            self._live.start()

    def say(self, text: str, *, once: bool = False, is_error: bool = False) -> None:
        """Prints a line that stays; with `once`, unless it was printed before."""
        with self._lock:
            if once and text in self._said:
                return
            self._said.add(text)
        self._line.clear()
        if is_error and not self._live.is_started:
            print(text, file=sys.stderr, flush=True)
        else:
            self._console.print(text)

    def rewrite(self, text: str) -> None:
        """Shows the present state of a line that a copy rewrites, in a terminal."""
        if not self._live.is_started:
            self._line.say(text)

    def now(self, copy: int, now: Mapping[str, Any]) -> None:
        """Shows what a copy does: its run, phase, and how far it is; {} if it has ended."""
        self._copies[copy] = now
        if seconds := now.get("seconds_per_step"):
            self._seconds_per_step[now["run"].rpartition("/")[0]] = seconds

    def ended(self, outcome: Mapping[str, Any]) -> None:
        """Prints how a run ended."""
        name = outcome["run"]
        self._ended.add(name)
        label = f"[{len(self._ended)}/{len(self._runs)}] {name}".ljust(28)
        if "failure" in outcome:
            self.say(f"{label}  failed: {outcome['failure']}{self._left()}")
        else:
            result = outcome["result"]
            self.say(f"{label}  {_describe(result, outcome['seconds'])}{self._left()}")
            if waiting_for_input(result.get("waiting_for_input", 0.0)):
                self.say(WAITING_REMEDY, once=True)

    def seconds_left(self) -> float:
        """Returns the steps that are left times the seconds of each, divided among the copies.

        An arm of which no step was timed takes as long per multiply-add as the others do. 0 if
        nothing is known.
        """
        known = self._seconds_per_step
        rates = [known[one.arm] / one.multiply_adds for one in self._runs.values()
                 if one.arm in known and one.multiply_adds]  # fmt: skip
        if not rates:
            return 0.0
        rate = sum(rates) / len(rates)
        now_done = {x["run"]: x.get("step", 0) for x in self._copies.values() if x.get("run")}
        done, left = {**self._done, **now_done}, 0.0
        for name, one in self._runs.items():
            if name not in self._ended:
                each = known.get(one.arm, rate * one.multiply_adds)
                left += (one.steps - done[name]) * each
        return left / max(1, sum(1 for now in self._copies.values() if now))

    def _left(self) -> str:
        left = self.seconds_left()
        return f"  {format_seconds(left)} left" if left else ""

    def _render(self) -> Group:
        """Returns a line of all runs, and one per copy; rich cuts what has no room below."""
        lines = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in ("run", "phase", "step", "loss", "images/s", "left"):
            justify: Any = "left" if title in ("run", "phase") else "right"
            lines.add_column(title, justify=justify, no_wrap=True)
        for now in self._copies.values():
            if now.get("run"):
                lines.add_row(*_cells(now))
        spent = format_seconds(time.monotonic() - self._began)
        done = f"{len(self._ended)} of {len(self._runs)} runs done in {spent}{self._left()}"
        return Group(done, lines)


def _cells(now: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the line of a copy, from what it says."""
    if "step" not in now:
        return now["run"], now["phase"], "", "", "", ""
    loss = now.get("loss")
    return (
        now["run"],
        now["phase"],
        f"{now['step']}/{now['steps']}",
        "skipped" if loss is None else f"{loss:.3f}",
        f"{now['images_per_second']:,.0f}",
        format_seconds(now["seconds_left"]),
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
