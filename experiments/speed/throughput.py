"""How fast is mnv2, compared to other frameworks?

Each framework runs in its own process, on the same processors and with the same number of threads.
The processes take turns, and while one is timed the others are stopped. Training is measured twice:
as users run each framework, and with memory in huge pages for all. `load` is the reading of
pictures, `feed` is training on them; they are crops of one photograph, in ImageNet's usual sizes.

Prints images/s (the median of the rounds, and their range) and the peak memory of each process. A
framework that is not installed, or that dies, is left out. `make throughput` installs them into an
environment of their own, and runs this command.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure

from experiments.common import photographs
from experiments.common.experiment import experiment_parser, run, write_csv
from experiments.speed.frameworks.steps import CONTENDERS, installed
from experiments.speed.frameworks.tasks import READING, TRAINING, Task
from experiments.speed.frameworks.turns import AS_RUN, OURS, PAGES, Row, measure, ranges, table_of
from mnv2.runtime.errors import UserError

TASKS = (
    Task("train", size=224, batch=32),
    Task("train", size=32, batch=128),
    Task("infer", size=224, batch=32),
    Task("infer", size=224, batch=1),
    Task("load", size=224, batch=32),
    Task("feed", size=224, batch=32),
)


def draw_bars(rows: Sequence[Row], path: Path) -> None:
    titles = list(dict.fromkeys(f"{row.task}\n{row.settings}" for row in rows))
    columns = min(3, len(titles))
    lines = -(-len(titles) // columns)
    figure = matplotlib.figure.Figure(figsize=(3.6 * columns, 3 * lines), layout="constrained")
    for number, title in enumerate(titles, start=1):
        axes = figure.add_subplot(lines, columns, number)
        of_title = [row for row in rows if f"{row.task}\n{row.settings}" == title]
        here = sorted(of_title, key=lambda row: row.median)
        names, medians = [row.name for row in here], [row.median for row in here]
        # Blue for this project, light blue for its files in other runtimes.
        colors = [
            "#3b6ea5" if name == OURS else "#a9c4e4" if OURS in name else "silver" for name in names
        ]
        axes.barh(names, medians, xerr=ranges(here), color=colors, ecolor="black", capsize=2)
        axes.set_xlabel("images/s")
        axes.set_title(title, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = experiment_parser(__file__, __doc__, rounds=5, seconds=3.0)
    parser.add_argument("--only", nargs="+", metavar="FRAMEWORK", help=", ".join(CONTENDERS))
    arguments = parser.parse_args()
    names, out = installed(arguments.only or CONTENDERS), arguments.out
    rows: list[Row] = []
    for task in TASKS:
        task = dataclasses.replace(task, threads=len(os.sched_getaffinity(0)))
        if task.mode in READING:
            photographs.write(out / "pictures")
            task = dataclasses.replace(task, pictures=str(out / "pictures"))
        able = [name for name in names if task.mode in CONTENDERS[name].modes]
        here: list[Row] = []
        for settings in (AS_RUN, PAGES) if task.mode in TRAINING else (AS_RUN,):
            here += measure(task, settings, able, arguments.rounds, arguments.seconds)
        if here:
            rows += here
            print(f"\n{task}, {task.threads} threads", end="")
            table_of(here, f"{out.name}_{task.mode}_{task.size}_{task.batch}").write(out)
            write_csv([row.record() for row in rows], out / "throughput.csv")
            draw_bars(rows, out / "throughput.png")
    if not rows:
        raise UserError("no framework could be measured")
    print(f"\nin {out}: the tables, throughput.csv, throughput.png")


if __name__ == "__main__":
    run(main)
