"""How fast is mnv2, compared to other frameworks?

Each framework runs in its own process, on the same processors and with the same number of threads.
The processes take turns, and while one is timed the others are stopped. So a change in the
machine's speed affects all of them alike. Training is measured twice: as users run each framework,
and with memory in huge pages for all. mnv2 has huge pages in both, since `mnv2.main` sets them up.

Prints images/s (the median of the rounds, and their range), the ratio to the best of PyTorch,
torch.compile and Keras, and the peak memory of each process. Writes throughput.csv and
throughput.png to --out. A framework that is not installed, or that dies, is left out.

--mode load times the reading of pictures: JPEG decoding, Inception's crop and flip, compared to
torchvision's loader. --mode feed times training on such pictures. The pictures are crops of one
photograph, in ImageNet's usual sizes.

`make throughput` installs the other frameworks into their own environment, and runs this command.
"""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib

from experiments.common import photographs
from experiments.common.writers import write_markdown
from experiments.speed.frameworks.results import OURS, Row, print_rows, ranges, write_csv
from experiments.speed.frameworks.steps import CONTENDERS, installed
from experiments.speed.frameworks.tasks import MODES, NETWORKS, READING, TRAINING, Task
from experiments.speed.frameworks.turns import AS_RUN, PAGES, measure
from mnv2.runtime.cli import command_parser, real_number, run, whole_number
from mnv2.runtime.errors import UserError, check_choice

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


HEADER = ("", "images/s", "memory, MiB", "images/s, huge pages for all", "memory, MiB")


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Writes one Markdown table per task, fastest first: FOLDER/FOLDER_train_224_32.md."""
    for task in dict.fromkeys(row.task for row in rows):
        here = [row for row in rows if row.task == task]
        first = sorted((r for r in here if r.settings == AS_RUN), key=lambda row: -row.median)
        settings = sorted({row.settings for row in here})
        lines = [
            [row.name, *(cell for each in settings for cell in _cells(here, row.name, each))]
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
    """Draws bars of images/s, with one panel for each task and its settings."""
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


def _tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """Yields the tasks that the arguments name; those of TABLE if they name none."""
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
    parser = command_parser("experiments.speed.throughput", __doc__)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--network", default="mobilenet_v2", help=" or ".join(NETWORKS))
    parser.add_argument("--mode", nargs="+", choices=MODES)
    parser.add_argument("--size", nargs="+", type=whole_number(), help="image sides, in pixels")
    parser.add_argument("--batch", nargs="+", type=whole_number())
    parser.add_argument("--width", nargs="+", type=real_number(), default=[1.0])
    parser.add_argument("--threads", nargs="+", type=whole_number(), default=[cores])
    parser.add_argument("--only", nargs="+", metavar="FRAMEWORK", help=", ".join(CONTENDERS))
    parser.add_argument("--rounds", type=whole_number(), default=5)
    parser.add_argument("--seconds", type=real_number(), default=3.0, help="least length of a turn")
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"))
    arguments = parser.parse_args()
    check_choice(arguments.network, NETWORKS, "network")
    if arguments.network == "resnet50" and arguments.width != [1.0]:
        raise UserError("the other frameworks have ResNet-50 at width 1 only")
    for threads in arguments.threads:
        if not 1 <= threads <= cores:
            raise UserError(f"threads must be 1 to {cores}, as many as processors, got {threads}")
    for name in arguments.only or ():
        check_choice(name, CONTENDERS, "framework")
    names = installed(arguments.only or CONTENDERS)
    arguments.out.mkdir(parents=True, exist_ok=True)
    tasks = list(_tasks(arguments))
    for folder in {task.pictures for task in tasks if task.pictures}:
        photographs.write(Path(folder))
    rows: list[Row] = []
    for task in tasks:
        able = [name for name in names if task.mode in CONTENDERS[name].modes]
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
