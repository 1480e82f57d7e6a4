"""What a person sees of a sweep while it is executed: a line per run, and one of what goes on."""

import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from mnv2.runtime.terminal import WAITING_REMEDY, StatusLine, format_seconds, waiting_for_input
from mnv2.sweeps.plan import Run
from mnv2.sweeps.workdir import accuracy, final_split


class Display:
    """Shows each run that ends as a line that stays, and in a terminal below them a status line."""

    def __init__(self) -> None:
        self._lock, self._line = threading.Lock(), StatusLine("")
        self._said: set[str] = set()
        self._copies: dict[int, Mapping[str, Any]] = {}
        self._runs: dict[str, Run] = {}
        self._done: dict[str, int] = {}  # the steps that each run had when the command began
        self._steps: dict[str, int] = {}  # those that each run has now
        self._ended: set[str] = set()
        self._seconds_per_step: dict[str, float] = {}  # by arm

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        self._line.clear()

    def show(self, runs: Sequence[Run]) -> None:
        """Begins to show runs, some of which may be finished already."""
        self._runs = {run.name: run for run in runs}
        self._done = {run.name: run.trained or 0 for run in runs}
        self._ended = {run.name for run in runs if run.finished}

    def say(self, text: str, *, once: bool = False, is_error: bool = False) -> None:
        """Prints a line that stays; with `once`, unless it was printed before."""
        with self._lock:
            if once and text in self._said:
                return
            self._said.add(text)
            self._line.clear()
            print(text, file=sys.stderr if is_error else sys.stdout, flush=True)

    def now(self, copy: int, now: Mapping[str, Any]) -> None:
        """Shows what a copy does: its run, phase, and how far it is; {} if it has ended."""
        self._copies[copy] = now
        if "step" in now:
            self._steps[now["run"]] = now["step"]
        if seconds := now.get("seconds_per_step"):
            self._seconds_per_step[now["run"].rpartition("/")[0]] = seconds
        with self._lock:
            self._line.say(self.status())

    def status(self) -> str:
        """Says in a line how many runs are done, and how far those are that go on."""
        active = [now for now in self._copies.values() if now.get("run")]
        phases = [f"{now['run']} {_progress(now, alone=len(active) == 1)}" for now in active]
        done = f"{len(self._ended)} of {len(self._runs)} runs done{self._left()}"
        return "  ".join((done, *phases))

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
        rates = [known[run.arm] / run.multiply_adds for run in self._runs.values()
                 if run.arm in known and run.multiply_adds]  # fmt: skip
        if not rates:
            return 0.0
        rate = sum(rates) / len(rates)
        done, left = self._done | self._steps, 0.0
        for name, run in self._runs.items():
            if name not in self._ended:
                each = known.get(run.arm, rate * run.multiply_adds)
                left += (run.steps - done[name]) * each
        return left / max(1, sum(1 for now in self._copies.values() if now))

    def _left(self) -> str:
        left = self.seconds_left()
        return f"  {format_seconds(left)} left" if left else ""


def _progress(now: Mapping[str, Any], *, alone: bool) -> str:
    """Says what a copy does; of several, only the step."""
    if "step" not in now:
        return str(now["phase"])
    step = f"{now['step']}/{now['steps']}"
    if not alone:
        return step
    loss = "skipped" if now.get("loss") is None else f"loss {now['loss']:.3f}"
    return f"{step}, {loss}, {now['images_per_second']:,.0f} images/s"


def _describe(result: Mapping[str, Any], seconds: float) -> str:
    """Describes a finished run in one line."""
    skipped = result.get("skipped_steps", 0)
    return (
        f"{final_split(result)} {accuracy(result):5.2f} %  "
        f"{result['images_per_second']:6,.0f} images/s  {format_seconds(seconds):>6}"
        f"{waiting_for_input(result.get('waiting_for_input', 0.0))}"
        f"{f'  {skipped} steps skipped, not finite' if skipped else ''}"
    )
