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
        """Starts the process.

        Args:
            name: The framework, a key of `steps.CONTENDERS`.
            task: What it does.
            pages: Whether its memory is in huge pages.
            log: The file for its output.
        """
        self.name, self.task = name, task
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.speed.contenders", name, json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(task.threads, pages),
            start_new_session=True,  # a group with its workers, which is stopped and ended as one
        )

    def ready(self) -> bool:
        """Waits until the process has compiled, and stops it. False if it died before."""
        assert self.process.stdout is not None
        answered = self.process.stdout.readline().strip() == "ready"
        if answered:
            self._signal(signal.SIGSTOP)
        return answered

    def time(self, seconds: float) -> tuple[float, int] | None:
        """Gives the process one turn.

        Returns its images per second (by the median step) and its peak memory in bytes, or None if
        the process has died.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self._signal(signal.SIGCONT)
            self.process.stdin.write(f"{seconds}\n")
            self.process.stdin.flush()
            answer = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            return None
        self._signal(signal.SIGSTOP)
        return self.task.batch / statistics.median(answer["seconds"]), answer["peak_memory"]

    def end(self) -> None:
        """Kills the process and its workers."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _environment(threads: int, pages: bool) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= TUNABLES if pages else dict.fromkeys(TUNABLES, "")
    return environment


def measure(
    task: Task, settings: str, names: Sequence[str], rounds: int, seconds: float
) -> list[Row]:
    """Times frameworks at one task, in turns.

    Args:
        task: What they do.
        settings: AS_RUN (only mnv2 trains with memory in huge pages) or PAGES (all do).
        names: The frameworks, keys of `steps.CONTENDERS`.
        rounds: The number of turns of each framework.
        seconds: The least time of one turn.

    Returns:
        One row per framework, except for those that died; the reason is printed to stderr.
    """
    line = StatusLine(str(task))
    contenders: list[Contender] = []
    turns: dict[str, list[tuple[float, int]]] = {}

    def leave_out(contender: Contender, reason: str) -> None:
        line.clear()
        print(f"{contender.name} is left out: {reason}", file=sys.stderr)
        contenders.remove(contender)
        turns.pop(contender.name, None)
        contender.end()

    with tempfile.TemporaryFile("w+", encoding="utf-8") as log:
        try:
            for name in names:
                line.say(f"starting {name}")
                pages = settings == PAGES or (name == OURS and task.mode in TRAINING)
                contenders.append(Contender(name, task, pages, log))
                turns[name] = []
                if not contenders[-1].ready():
                    log.seek(0)
                    reason = (log.read().strip().splitlines() or ["no reason given"])[-1]
                    leave_out(contenders[-1], reason)
            for i in range(rounds):
                line.say(f"round {i + 1} of {rounds}")
                for contender in list(contenders):
                    answer = contender.time(seconds)
                    if answer:
                        turns[contender.name].append(answer)
                    else:
                        leave_out(contender, "it died; if it was killed, memory ran out")
        finally:
            for contender in contenders:
                contender.end()
            line.clear()
    return [
        Row(task, settings, name, speeds, max(memory))
        for name, answers in turns.items()
        for speeds, memory in [tuple(zip(*answers, strict=True))]
    ]
