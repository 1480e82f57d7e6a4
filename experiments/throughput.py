"""How fast are the networks here, beside other frameworks? python -m experiments.throughput

Every framework runs in a process of its own, on the same processors, with the same number of
threads, and the processes take turns, so that a machine whose speed wavers is unfair to none: while
one is timed the others are stopped. Prints images/s (median of the rounds, and their range), the
ratio to the best of PyTorch and Keras, and each process's peak memory; writes throughput.csv and
throughput.png to --out. A framework that is not installed is left out. `pages` is memory in huge
pages, as `mnv2.main` sets it for itself; the others get it here to tell what it is worth to them.

`make throughput` installs the other frameworks into an environment of its own, and runs this.
"""

import argparse
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import matplotlib

from experiments.contenders import CONTENDERS, Task, missing
from mnv2 import allocator
from mnv2.commands import run
from mnv2.errors import UserError, check_choice
from mnv2.progress import Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLE = (
    Task("train", size=224, batch=32),
    Task("train", size=32, batch=128),
    Task("infer", size=224, batch=32),
    Task("infer", size=224, batch=1),
)
PEERS = ("PyTorch", "torch.compile", "Keras")  # the best of them is what ratios are to
OURS = "mnv2"


class Row(NamedTuple):
    """One framework at one task."""

    task: Task
    name: str
    pages: bool
    images_per_second: tuple[float, ...]  # of each round
    peak_memory: int  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)

    @property
    def label(self) -> str:
        return f"{self.name}, pages" if self.pages else self.name


class Contender:
    """A framework's process, stopped except while it is asked."""

    def __init__(self, name: str, task: Task, pages: bool, log: IO[str]) -> None:
        self.name, self.task, self.pages = name, task, pages
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.contenders", name, json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(task.threads, pages),
        )

    def ready(self) -> bool:
        assert self.process.stdout is not None
        answered = self.process.stdout.readline().strip() == "ready"
        if answered:
            self.process.send_signal(signal.SIGSTOP)
        return answered

    def time(self, seconds: float) -> tuple[float, int]:
        """Images per second of one turn, and bytes of memory at their peak."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.process.send_signal(signal.SIGSTOP)
        return self.task.batch / statistics.median(answer["seconds"]), answer["peak_memory"]

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


def _environment(threads: int, pages: bool) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment[allocator.VARIABLE] = allocator.TUNABLES if pages else ""
    return environment


def measure(task: Task, names: Sequence[str], rounds: int, seconds: float) -> list[Row]:
    """Every contender at one task, in turns."""
    progress = Progress(str(task), rounds, task.batch)
    contenders = []
    with tempfile.TemporaryFile("w+") as log:
        try:
            for name in names:
                for pages in (False, True) if task.mode == "train" else (False,):
                    progress.say(f"starting {name}")
                    contenders.append(Contender(name, task, pages, log))
                    if not contenders[-1].ready():
                        log.seek(0)
                        reason = (log.read().strip().splitlines() or ["no reason given"])[-1]
                        progress.clear()
                        print(f"{name} is left out: {reason}", file=sys.stderr)
                        contenders.pop().end()
            turns: list[list[tuple[float, int]]] = [[] for _ in contenders]
            for i in range(rounds):
                progress.say(f"round {i + 1} of {rounds}")
                for contender, answers in zip(contenders, turns, strict=True):
                    answers.append(contender.time(seconds))
        finally:
            for contender in contenders:
                contender.end()
            progress.clear()
    return [
        Row(task, contender.name, contender.pages, speeds, max(memory))
        for contender, answers in zip(contenders, turns, strict=True)
        for speeds, memory in [tuple(zip(*answers, strict=True))]
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """One task's table."""
    best = max((row.median for row in rows if row.name in PEERS and not row.pages), default=None)
    best_pages = max((row.median for row in rows if row.name in PEERS), default=None)
    print(f"\n{rows[0].task}, {rows[0].task.threads} threads")
    print(
        f"  {'':20} {'images/s':>9} {'range':>15} {'ms/batch':>9} {'ratio':>6} {'peak memory':>12}"
    )
    for row in sorted(rows, key=lambda row: -row.median):
        low, high = min(row.images_per_second), max(row.images_per_second)
        memory = row.peak_memory / 2**20
        # With pages, against the best that the others reach with the same or without.
        against = best_pages if row.pages else best
        ratio = f"{row.median / against:.2f}" if against else ""
        print(
            f"  {row.label:20} {row.median:9,.1f} {f'{low:,.1f}-{high:,.1f}':>15} "
            f"{1000 * row.task.batch / row.median:9.2f} {ratio:>6} {memory:8,.0f} MiB",
            flush=True,
        )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        fields = ("framework", "pages", "images_per_second", "lowest", "highest", "peak_mib")
        writer = csv.writer(file)
        writer.writerow([*vars(rows[0].task), *fields])
        for row in rows:
            speeds = (row.median, min(row.images_per_second), max(row.images_per_second))
            numbers = [f"{speed:.4g}" for speed in speeds]
            memory = round(row.peak_memory / 2**20)
            writer.writerow([*vars(row.task).values(), row.name, row.pages, *numbers, memory])


def draw(rows: Sequence[Row], path: Path) -> None:
    """Bars of images/s, a panel a task."""
    tasks = list(dict.fromkeys(row.task for row in rows))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(3.4 * len(tasks), 3.6), squeeze=False, layout="constrained"
    )
    for task, axes in zip(tasks, panels[0], strict=True):
        here = sorted((row for row in rows if row.task == task), key=lambda row: row.median)
        speeds = [row.median for row in here]
        below = [row.median - min(row.images_per_second) for row in here]
        above = [max(row.images_per_second) - row.median for row in here]
        axes.barh(
            [row.label for row in here],
            speeds,
            xerr=(below, above),
            color=["black" if row.name == OURS else "silver" for row in here],
            ecolor="dimgray",
            capsize=2,
        )
        axes.set_xlabel("images/s")
        axes.set_title(str(task), fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """The table's tasks, or those that the arguments spell out."""
    for mode, size, batch in (
        [(task.mode, task.size, task.batch) for task in TABLE]
        if arguments.size is None and arguments.batch is None and arguments.mode is None
        else [
            (mode, size, batch)
            for mode in arguments.mode or ["train"]
            for size in arguments.size or [224]
            for batch in arguments.batch or [32]
        ]
    ):
        for width in arguments.width:
            for threads in arguments.threads:
                yield Task(mode, arguments.network, width, size, batch, threads)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--network", default="mobilenet_v2", help="or mobilenet_v1")
    parser.add_argument("--mode", nargs="+", choices=("train", "infer"))
    parser.add_argument("--size", nargs="+", type=int, help="pixels; several make a series")
    parser.add_argument("--batch", nargs="+", type=int)
    parser.add_argument("--width", nargs="+", type=float, default=[1.0])
    parser.add_argument("--threads", nargs="+", type=int, default=[cores])
    parser.add_argument("--only", nargs="+", metavar="FRAMEWORK", help=", ".join(CONTENDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn, at least")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"))
    arguments = parser.parse_args()
    check_choice(arguments.network, ("mobilenet_v1", "mobilenet_v2"), "network")
    for threads in arguments.threads:
        if not 1 <= threads <= cores:
            raise UserError(f"threads must be 1 to the {cores} processors here, got {threads}")
    for name in arguments.only or ():
        check_choice(name, CONTENDERS, "framework")
    names = []
    for name in arguments.only or CONTENDERS:
        if lacking := missing(name):
            print(f"{name} is left out: {', '.join(lacking)} not installed (make throughput)")
        else:
            names.append(name)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for task in _tasks(arguments):
        able = [name for name in names if task.mode in CONTENDERS[name][2]]
        rows += (measured := measure(task, able, arguments.rounds, arguments.seconds))
        print_rows(measured)
        write_csv(rows, arguments.out / "throughput.csv")
        draw(rows, arguments.out / "throughput.png")
    print(f"\nwritten: {arguments.out}/throughput.csv, throughput.png")


if __name__ == "__main__":
    run(main)
