"""Times frameworks in turns, each in its own process: speed and memory, as tables and as CSV."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from experiments.common.experiment import Table
from experiments.speed.frameworks.tasks import TRAINING, Task
from mnv2.runtime.machine import TUNABLES
from mnv2.runtime.terminal import StatusLine

AS_RUN, PAGES = "as users run them", "huge pages for all"
OURS = "mnv2"
HEADER = ("", "images/s", "memory, MiB", "images/s, huge pages for all", "memory, MiB")


class Row(NamedTuple):
    task: Task
    settings: str  # AS_RUN or PAGES
    name: str
    images_per_second: tuple[float, ...]  # one per round
    peak_memory: int  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)

    def record(self) -> dict[str, Any]:
        """Returns the columns of the CSV: the fields of the task, then the measurements."""
        return {
            **vars(self.task),
            "settings": self.settings,
            "framework": self.name,
            "images_per_second": f"{self.median:.4g}",
            "lowest": f"{min(self.images_per_second):.4g}",
            "highest": f"{max(self.images_per_second):.4g}",
            "peak_mib": round(self.peak_memory / 2**20),
        }


class Contender:
    """The process of one framework at one task. It is stopped except during its turns."""

    def __init__(self, name: str, task: Task, pages: bool, log: IO[str]) -> None:
        """Starts the process of a key of `steps.CONTENDERS`, with memory in huge `pages` or not."""
        self.turns: list[tuple[float, int]] = []  # images per second, and peak memory in bytes
        environment = {"OMP_NUM_THREADS": str(task.threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process: Any = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.contenders", name, json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment | (TUNABLES if pages else dict.fromkeys(TUNABLES, "")),
            start_new_session=True,  # a group with its workers, which is stopped and ended as one
        )

    def answer(self, seconds: float | None = None) -> Any:
        """Waits until the process has compiled, or gives it a turn; then stops it.

        Returns what it answers, or None if it has died.
        """
        try:
            if seconds is not None:
                self.signal(signal.SIGCONT)
                self.process.stdin.write(f"{seconds}\n")
                self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return None
        finally:
            self.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def measure(
    task: Task, settings: str, names: Sequence[str], rounds: int, seconds: float
) -> list[Row]:
    """Times frameworks, keys of `steps.CONTENDERS`, at one task, in turns of so many `seconds`.

    `settings` is AS_RUN (only mnv2 trains with memory in huge pages) or PAGES (all do). Frameworks
    that die are left out; the reason is printed to stderr.
    """
    line = StatusLine(str(task))
    contenders: dict[str, Contender] = {}

    def leave_out(name: str, reason: str) -> None:
        line.clear()
        print(f"{name} is left out: {reason}", file=sys.stderr)
        contenders.pop(name).end()

    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            for name in names:
                line.say(f"starting {name}")
                pages = settings == PAGES or (name == OURS and task.mode in TRAINING)
                contenders[name] = Contender(name, task, pages, log)
                if not contenders[name].answer():
                    log.seek(0)
                    leave_out(name, (log.read().strip().splitlines() or ["no reason given"])[-1])
            for i in range(rounds):
                line.say(f"round {i + 1} of {rounds}")
                for name, contender in list(contenders.items()):
                    if answer := contender.answer(seconds):
                        speed = task.batch / statistics.median(answer["seconds"])
                        contender.turns.append((speed, answer["peak_memory"]))
                    else:
                        leave_out(name, "it died; if it was killed, memory ran out")
        finally:
            for contender in contenders.values():
                contender.end()
            line.clear()
    rows = []
    for name, contender in contenders.items():
        speeds, memory = zip(*contender.turns, strict=True)
        rows.append(Row(task, settings, name, speeds, max(memory)))
    return rows


def table_of(rows: Sequence[Row], name: str = "") -> Table:
    """Returns the table of one task, fastest first, with two columns for each of its settings."""
    settings = list(dict.fromkeys(row.settings for row in rows))
    cells = {(row.name, row.settings): _cells(row) for row in rows}
    first = sorted((r for r in rows if r.settings == settings[0]), key=lambda row: -row.median)
    lines = [
        [row.name, *(cell for each in settings for cell in cells.get((row.name, each), ("", "")))]
        for row in first
    ]
    return Table(name, HEADER[: 1 + 2 * len(settings)], lines)


def _cells(row: Row) -> tuple[str, str]:
    speeds = (row.median, min(row.images_per_second), max(row.images_per_second))
    median, *ends = map(rounded, speeds)
    return f"{median} ({'-'.join(ends)})", f"{row.peak_memory / 2**20:,.0f}"


def rounded(speed: float) -> str:
    """Returns images per second as tables have them: below 100 with a decimal."""
    return f"{speed:,.{0 if speed >= 100 else 1}f}"


def ranges(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Returns how far the rounds of each row lie below and above their median, for error bars."""
    below = [row.median - min(row.images_per_second) for row in rows]
    return below, [max(row.images_per_second) - row.median for row in rows]
