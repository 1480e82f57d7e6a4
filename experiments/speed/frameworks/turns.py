"""Times frameworks in turns, each in its own process."""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from experiments.speed.frameworks.results import OURS, Row
from experiments.speed.frameworks.tasks import TRAINING, Task
from mnv2.runtime.machine import TUNABLES
from mnv2.runtime.terminal import StatusLine

AS_RUN, PAGES = "as users run them", "huge pages for all"


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
