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
from typing import IO

from experiments.speed.frameworks.results import OURS, Row
from experiments.speed.frameworks.tasks import TRAINING, Task
from mnv2.runtime.machine import TUNABLES
from mnv2.runtime.terminal import StatusLine

AS_RUN, PAGES = "as users run them", "huge pages for all"


class Contender:
    """The process of one framework at one task. It is stopped except during its turns."""

    def __init__(self, name: str, task: Task, pages: bool, log: IO[str]) -> None:
        """Starts the process of a key of `steps.CONTENDERS`, with memory in huge `pages` or not."""
        self.name, self.task = name, task
        environment = {"OMP_NUM_THREADS": str(task.threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.contenders", name, json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment | (TUNABLES if pages else dict.fromkeys(TUNABLES, "")),
            start_new_session=True,  # a group with its workers, which is stopped and ended as one
        )

    def ready(self) -> bool:
        """Waits until the process has compiled, and stops it. False if it died before."""
        assert self.process.stdout is not None
        answered = self.process.stdout.readline().strip() == "ready"
        if answered:
            self.signal(signal.SIGSTOP)
        return answered

    def time(self, seconds: float) -> tuple[float, int] | None:
        """Gives the process one turn.

        Returns its images per second (by the median step) and its peak memory in bytes, or None if
        the process has died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.signal(signal.SIGCONT)
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return None
        self.signal(signal.SIGSTOP)
        return self.task.batch / statistics.median(answer["seconds"]), answer["peak_memory"]

    def end(self) -> None:
        """Kills the process and its workers."""
        self.signal(signal.SIGKILL)
        self.process.wait()

    def signal(self, number: int) -> None:
        """Sends a signal to the process and its workers, if they are alive."""
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
    turns: dict[str, list[tuple[float, int]]] = {}

    def leave_out(name: str, reason: str) -> None:
        line.clear()
        print(f"{name} is left out: {reason}", file=sys.stderr)
        contenders.pop(name).end()
        turns.pop(name)

    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            for name in names:
                line.say(f"starting {name}")
                pages = settings == PAGES or (name == OURS and task.mode in TRAINING)
                contenders[name], turns[name] = Contender(name, task, pages, log), []
                if not contenders[name].ready():
                    log.seek(0)
                    said = log.read().strip().splitlines() or ["no reason given"]
                    leave_out(name, said[-1])
            for i in range(rounds):
                line.say(f"round {i + 1} of {rounds}")
                for name, contender in list(contenders.items()):
                    if answer := contender.time(seconds):
                        turns[name].append(answer)
                    else:
                        leave_out(name, "it died; if it was killed, memory ran out")
        finally:
            for contender in contenders.values():
                contender.end()
            line.clear()
    return [
        Row(task, settings, name, speeds, max(memory))
        for name, answers in turns.items()
        for speeds, memory in [tuple(zip(*answers, strict=True))]
    ]
