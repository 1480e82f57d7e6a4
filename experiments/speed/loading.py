"""How many pictures does a core prepare with each augmentation?

Reads JPEG files of ImageNet's usual sizes, crops and flips them, and does what each recipe adds:
beside torchvision's loader, in turns, with one thread each. Writes loading.md to --out. `make
throughput` installs torchvision into an environment of its own, and runs this command.
"""

import statistics
from collections.abc import Sequence

from experiments.common import photographs
from experiments.common.experiment import Table, experiment_parser, run
from experiments.speed.frameworks.steps import installed
from experiments.speed.frameworks.tasks import AUGMENTATIONS, Task
from experiments.speed.frameworks.turns import AS_RUN, OURS, Row, measure
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
    arguments = experiment_parser(__file__, __doc__, rounds=5, seconds=3.0).parse_args()
    names = installed((OURS, TORCH))
    if TORCH not in names:
        raise UserError("torchvision is not installed here: make throughput installs it")
    pictures = arguments.out / "pictures"
    photographs.write(pictures)
    lines = []
    for augmentation in AUGMENTATIONS:
        task = Task("load", threads=1, pictures=str(pictures), augmentation=augmentation)
        found = measure(task, AS_RUN, names, arguments.rounds, arguments.seconds)
        if len(found) < len(names):
            raise UserError(f"{augmentation} could not be measured")
        lines.append(line_of(found))
    header = ("augmentation", "mnv2", "torchvision", "ratio")
    Table("loading", header, lines).write(arguments.out)


if __name__ == "__main__":
    run(main)
