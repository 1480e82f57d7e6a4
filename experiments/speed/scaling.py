"""How does speed change with batch size, resolution, width and threads?

Times the training of MobileNetV2 1.0 at 96 pixels, batch 32, on all processors. Then each of the
four is varied alone. PyTorch is timed as well if it is installed (`make scaling` installs it). The
measurement is that of `experiments.speed.throughput`. Writes scaling.csv and scaling.png to --out.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
from matplotlib import ticker

from experiments.common.experiment import experiment_parser, run, write_csv
from experiments.speed.frameworks.steps import installed
from experiments.speed.frameworks.tasks import Task
from experiments.speed.frameworks.turns import AS_RUN, OURS, Row, measure, ranges, table_of
from mnv2.runtime.errors import UserError

CURVES: dict[str, tuple[str, Sequence[Any]]] = {  # label and values of each field that is varied
    "batch": ("batch size", (1, 8, 32, 128)),
    "size": ("image side, pixels", (32, 96, 160, 224)),
    "width": ("width multiplier", (0.35, 0.5, 1.0, 1.4)),
    "threads": ("threads", ()),  # powers of two, up to the processors
}


def series(base: Task, cores: int) -> dict[str, list[Task]]:
    """Returns the tasks of each curve, by the field of `base` that is varied."""
    threads: Sequence[Any] = sorted({2**i for i in range(cores.bit_length())} | {cores})
    return {
        field: [dataclasses.replace(base, **{field: value}) for value in values or threads]
        for field, (_, values) in CURVES.items()
    }


def draw(curves: Mapping[str, list[Task]], rows: Sequence[Row], title: str, path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(2, 2)
    for (field, tasks), axes in zip(curves.items(), panels.flat, strict=True):
        for i, name in enumerate(dict.fromkeys(row.name for row in rows)):
            curve = [row for task in tasks for row in rows if (row.task, row.name) == (task, name)]
            axes.errorbar(
                [getattr(row.task, field) for row in curve],
                [row.median for row in curve],
                ranges(curve),
                fmt=("o-", "s--")[i],
                color="#3b6ea5" if name == OURS else "gray",
                capsize=2,
                label=name,
            )
        values = [getattr(task, field) for task in tasks]
        axes.set(xscale="log", yscale="log", xlabel=CURVES[field][0], ylabel="images/s")
        axes.set_xticks(values, [f"{x:g}" for x in values])
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=9)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, rounds=3, seconds=1.5).parse_args()
    names = installed((OURS, "PyTorch"))
    cores = len(os.sched_getaffinity(0))
    base = Task("train", size=96, batch=32, threads=cores)
    curves = series(base, cores)
    rows: list[Row] = []
    for task in dict.fromkeys(task for tasks in curves.values() for task in tasks):
        if new := measure(task, AS_RUN, names, arguments.rounds, arguments.seconds):
            rows += new
            print(f"\n{task}, {task.threads} threads\n{table_of(new)}", flush=True)
            write_csv([row.record() for row in rows], arguments.out / "scaling.csv")
    if not rows:
        raise UserError("no framework could be measured")
    title = f"{base}, {cores} threads; each varied alone"
    draw(curves, rows, title, arguments.out / "scaling.png")
    print(f"\nin {arguments.out}: scaling.csv, scaling.png")


if __name__ == "__main__":
    run(main)
