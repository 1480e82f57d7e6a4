"""How many pictures does a core prepare with each augmentation?

Reads JPEG files of ImageNet's usual sizes, crops and flips them, and does what each recipe adds:
beside torchvision's loader, in turns, with one thread each. Writes loading.csv and loading.md to
--out. `make throughput` installs torchvision into an environment of its own, and runs this command.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.common import photographs
from experiments.common.table import Table
from experiments.speed.frameworks.results import OURS, Row, print_rows, write_csv
from experiments.speed.frameworks.steps import installed
from experiments.speed.frameworks.tasks import AUGMENTATIONS, Task
from experiments.speed.frameworks.turns import AS_RUN, measure
from mnv2.runtime.cli import command_parser, real_number, run, whole_number
from mnv2.runtime.errors import UserError

TORCH = "PyTorch"


def line_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """Returns the line of one augmentation: both speeds, and the ratio with its range."""
    speeds = {row.name: row.images_per_second for row in rows}
    medians = [f"{statistics.median(speeds[name]):,.0f}" for name in (OURS, TORCH)]
    ratios = [ours / others for ours, others in zip(speeds[OURS], speeds[TORCH], strict=True)]
    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    return rows[0].task.augmentation, *medians, ratio


def main() -> None:
    parser = command_parser("experiments.speed.loading", __doc__)
    parser.add_argument("--rounds", type=whole_number(), default=5)
    parser.add_argument("--seconds", type=real_number(), default=3.0, help="least length of a turn")
    parser.add_argument("--out", type=Path, default=Path("runs/loading"))
    arguments = parser.parse_args()
    names = installed((OURS, TORCH))
    if TORCH not in names:
        raise UserError("torchvision is not installed here: make throughput installs it")
    pictures = arguments.out / "pictures"
    photographs.write(pictures)
    rows: list[Row] = []
    lines = []
    for augmentation in AUGMENTATIONS:
        task = Task("load", "mobilenet_v2", 1.0, 224, 32, 1, str(pictures), augmentation)
        found = measure(task, AS_RUN, names, arguments.rounds, arguments.seconds)
        if len(found) < len(names):
            raise UserError(f"{augmentation} could not be measured")
        print(f"\n{augmentation}", end="")
        print_rows(found)
        rows += found
        lines.append(line_of(found))
    write_csv(rows, arguments.out / "loading.csv")
    header = ("augmentation", "mnv2", "torchvision", "ratio")
    Table("loading", header, lines).write(arguments.out)
    print(f"\nin {arguments.out}: loading.csv, loading.md")


if __name__ == "__main__":
    run(main)
