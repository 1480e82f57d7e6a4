"""How fast are the networks here, beside other frameworks? python -m experiments.throughput

Every framework runs in a process of its own, on the same processors, with the same number of
threads, and the processes take turns, so that a machine whose speed wavers is unfair to none: while
one is timed the others are stopped. Training is measured twice: as users run each framework, which
for mnv2 means memory in huge pages, as `mnv2.main` sets it for itself, and with that memory for
all. Prints images/s (median of the rounds, and their range), the ratio to the best of PyTorch and
Keras, and each process's peak memory; writes throughput.csv and throughput.png to --out. A
framework that is not installed, or that dies, is left out.

--mode load times reading pictures (JPEG decoding, Inception's crop, flip; torchvision's loader
beside it), --mode feed training on them: crops of ImageNet's usual sizes from a photograph.

`make throughput` installs the other frameworks into an environment of its own, and runs this.
"""

import argparse
import contextlib
import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import matplotlib

from experiments import photographs
from experiments.contenders import CONTENDERS, READING, Task, missing
from experiments.tables import write_markdown
from mnv2.runtime import huge_pages
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.throughput import Progress

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TABLE = (
    Task("train", size=224, batch=32),
    Task("train", size=32, batch=128),
    Task("infer", size=224, batch=32),
    Task("infer", size=224, batch=1),
    Task("load", size=224, batch=32),
    Task("feed", size=224, batch=32),
)
MODES = ("train", "infer", "load", "feed")
TRAINING = ("train", "feed")
PEERS = ("PyTorch", "torch.compile", "Keras")  # the best of them is what ratios are to
OURS = "mnv2"


AS_RUN, PAGES = "as users run them", "huge pages for all"


class Row(NamedTuple):
    """One framework at one task."""

    task: Task
    settings: str  # AS_RUN or PAGES
    name: str
    images_per_second: tuple[float, ...]  # of each round
    peak_memory: int  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)

    @property
    def panel(self) -> str:
        return f"{self.task}\n{self.settings}"


class Contender:
    """A framework's process, stopped except while it is asked."""

    def __init__(self, name: str, task: Task, pages: bool, log: IO[str]) -> None:
        self.name, self.task = name, task
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.contenders", name, json.dumps(vars(task))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=_environment(task.threads, pages),
            start_new_session=True,  # with its workers it is a group, stopped and ended together
        )

    def ready(self) -> bool:
        assert self.process.stdout is not None
        answered = self.process.stdout.readline().strip() == "ready"
        if answered:
            self._signal(signal.SIGSTOP)
        return answered

    def time(self, seconds: float) -> tuple[float, int] | None:
        """Images per second of one turn, and bytes of memory at their peak; None if it is dead."""
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
        self._signal(signal.SIGKILL)
        self.process.wait()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _environment(threads: int, pages: bool) -> dict[str, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment[huge_pages.VARIABLE] = huge_pages.TUNABLES if pages else ""
    return environment


def measure(
    task: Task, settings: str, names: Sequence[str], rounds: int, seconds: float
) -> list[Row]:
    """Every contender at one task, in turns."""
    progress = Progress(str(task), rounds, task.batch)
    contenders: list[Contender] = []
    turns: dict[str, list[tuple[float, int]]] = {}

    def leave_out(contender: Contender, reason: str) -> None:
        progress.clear()
        print(f"{contender.name} is left out: {reason}", file=sys.stderr)
        contenders.remove(contender)
        turns.pop(contender.name, None)
        contender.end()

    with tempfile.TemporaryFile("w+") as log:
        try:
            for name in names:
                progress.say(f"starting {name}")
                pages = settings == PAGES or (name == OURS and task.mode in TRAINING)
                contenders.append(Contender(name, task, pages, log))
                turns[name] = []
                if not contenders[-1].ready():
                    log.seek(0)
                    reason = (log.read().strip().splitlines() or ["no reason given"])[-1]
                    leave_out(contenders[-1], reason)
            for i in range(rounds):
                progress.say(f"round {i + 1} of {rounds}")
                for contender in list(contenders):
                    answer = contender.time(seconds)
                    if answer:
                        turns[contender.name].append(answer)
                    else:
                        leave_out(contender, "it died; for want of memory, if it was killed")
        finally:
            for contender in contenders:
                contender.end()
            progress.clear()
    return [
        Row(task, settings, name, speeds, max(memory))
        for name, answers in turns.items()
        for speeds, memory in [tuple(zip(*answers, strict=True))]
    ]


def print_rows(rows: Sequence[Row]) -> None:
    """One task's table."""
    if not rows:
        return
    best = max((row.median for row in rows if row.name in PEERS), default=None)
    task, settings = rows[0].task, rows[0].settings
    print(f"\n{task}, {task.threads} threads, {settings}")
    print(
        f"  {'':14} {'images/s':>9} {'range':>15} {'ms/batch':>9} {'ratio':>6} {'peak memory':>12}"
    )
    for row in sorted(rows, key=lambda row: -row.median):
        low, high = min(row.images_per_second), max(row.images_per_second)
        ratio = f"{row.median / best:.2f}" if best else ""
        print(
            f"  {row.name:14} {row.median:9,.1f} {f'{low:,.1f}-{high:,.1f}':>15} "
            f"{1000 * task.batch / row.median:9.2f} {ratio:>6} "
            f"{row.peak_memory / 2**20:8,.0f} MiB",
            flush=True,
        )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        fields = ("settings", "framework", "images_per_second", "lowest", "highest", "peak_mib")
        writer = csv.writer(file)
        writer.writerow([*vars(rows[0].task), *fields])
        for row in rows:
            speeds = (row.median, min(row.images_per_second), max(row.images_per_second))
            numbers = [f"{speed:.4g}" for speed in speeds]
            memory = round(row.peak_memory / 2**20)
            writer.writerow([*vars(row.task).values(), row.settings, row.name, *numbers, memory])


HEADER = ("", "images/s", "memory, MiB", "images/s, huge pages for all", "memory, MiB")


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """A Markdown table for each task, fastest first: FOLDER_train_224_32.md."""
    for task in dict.fromkeys(row.task for row in rows):
        here = [row for row in rows if row.task == task]
        first = sorted((r for r in here if r.settings == AS_RUN), key=lambda row: -row.median)
        settings = sorted({row.settings for row in here})
        lines = [
            [row.name, *(cell for of in settings for cell in _cells(here, row.name, of))]
            for row in first
        ]
        name = f"{folder.name}_{task.mode}_{task.size}_{task.batch}"
        write_markdown(folder, name, HEADER[: 1 + 2 * len(settings)], lines)


def _cells(rows: Sequence[Row], name: str, settings: str) -> tuple[str, str]:
    for row in rows:
        if (row.name, row.settings) == (name, settings):
            speeds = (row.median, min(row.images_per_second), max(row.images_per_second))
            median, *ends = (f"{speed:,.{0 if speed >= 100 else 1}f}" for speed in speeds)
            return f"{median} ({'-'.join(ends)})", f"{row.peak_memory / 2**20:,.0f}"
    return "", ""


def draw_bars(rows: Sequence[Row], path: Path) -> None:
    """Bars of images/s, a panel for each task and setting."""
    titles = list(dict.fromkeys(row.panel for row in rows))
    columns = min(3, len(titles))
    figure, panels = plt.subplots(
        -(-len(titles) // columns),
        columns,
        figsize=(3.6 * columns, 3 * -(-len(titles) // columns)),
        squeeze=False,
        layout="constrained",
    )
    for axes in panels.flat[len(titles) :]:
        axes.remove()
    for title, axes in zip(titles, panels.flat, strict=False):
        here = sorted((row for row in rows if row.panel == title), key=lambda row: row.median)
        axes.barh(
            [row.name for row in here],
            [row.median for row in here],
            xerr=ranges(here),
            color=["black" if row.name == OURS else "silver" for row in here],
            ecolor="dimgray",
            capsize=2,
        )
        axes.set_xlabel("images/s")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def ranges(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """How far the rounds reach below and above their median."""
    below = [row.median - min(row.images_per_second) for row in rows]
    return below, [max(row.images_per_second) - row.median for row in rows]


def installed(names: Iterable[str]) -> list[str]:
    """Those of the frameworks that are here; says of the others what they lack."""
    found = []
    for name in names:
        if lacking := missing(name):
            print(f"{name} is left out: {', '.join(lacking)} not installed (make throughput)")
        else:
            found.append(name)
    return found


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
                pictures = str(arguments.out / "pictures") if mode in READING else ""
                yield Task(mode, arguments.network, width, size, batch, threads, pictures)


def main() -> None:
    parser = command_parser("experiments.throughput", __doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--network", default="mobilenet_v2", help="or mobilenet_v1")
    parser.add_argument("--mode", nargs="+", choices=MODES)
    parser.add_argument("--size", nargs="+", type=int, help="pixels of a side")
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
    names = installed(arguments.only or CONTENDERS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = list(_tasks(arguments))
    for folder in {task.pictures for task in tasks if task.pictures}:
        photographs.write(Path(folder))
    rows: list[Row] = []
    for task in tasks:
        able = [name for name in names if task.mode in CONTENDERS[name][2]]
        for settings in (AS_RUN, PAGES) if task.mode in TRAINING else (AS_RUN,):
            rows += (new := measure(task, settings, able, arguments.rounds, arguments.seconds))
            print_rows(new)
            if rows:
                write_csv(rows, arguments.out / "throughput.csv")
                write_tables(rows, arguments.out)
                draw_bars(rows, arguments.out / "throughput.png")
    if not rows:
        raise UserError("no framework could be measured")
    print(f"\nwritten: {arguments.out}/throughput.csv, throughput.png")


if __name__ == "__main__":
    run(main)
