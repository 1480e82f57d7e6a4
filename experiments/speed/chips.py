"""What does a training step cost on a TPU or GPU that is not here?

XLA's compilers for TPUs and NVIDIA GPUs run on any Linux machine. For each network, this compiles
the training step (forward, backward, SGD with momentum, bfloat16, one chip), of mnv2 and of the
same network in plain Flax, and reads from the programs what they will cost:

  TPU   the compiler's estimate of the cycles, and the images/s that follow at the chip's clock
  H100  the kernels, and the bytes that they read and write; for mnv2 the time in which the memory
        moves them, and the sum over kernels of the larger of this time and of the time in which
        the instructions are issued: a lower bound of a step, and of images/s an upper one

These are estimates of compilers, not measurements: they are for comparing two programs for the same
chip. Writes one table per chip to --out, and the kernels of each program of mnv2. `make tpu` and
`make h100` install the compilers into an environment of their own, run this command, and fill
docs/accelerators.md. One program takes 10 s to 5 minutes.
"""

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from experiments.common.experiment import Table, experiment_parser, run, tried, write_csv
from experiments.speed.compilers.chips import CHIPS, check_installed, environment
from experiments.speed.compilers.cost import KINDS, SMALL, Cost, Kernel
from experiments.speed.compilers.steps import FRAMEWORKS, TASKS, Task
from mnv2.runtime.errors import UserError, check_choice

TPU = ("network", "cycles, M", "plain Flax", "ratio", "memory, GB", "images/s (estimate)")
GPU = ("network", "traffic, GB", "plain Flax", "ratio", "kernels", "plain Flax", "memory, GB",
       "ms by bytes", "ms by the larger", "images/s (bound)")  # fmt: skip

TIMES = ("by_bytes", "seconds")  # of a kernel


class Row(NamedTuple):
    """The cost of one program, which trains a network."""

    chip: str
    task: Task
    framework: str
    cost: Cost

    @property
    def per_second(self) -> float:
        """Images per second by the chip's clock or its limits; 0 if neither is known."""
        target = CHIPS[self.chip]
        if target.gigahertz:
            return self.task.batch * target.gigahertz * 1e9 / self.cost.cycles
        return self.task.batch / self.cost.seconds() if self.cost.kernels else 0.0


def cost_of(task: str, framework: str, chip: str) -> Cost:
    """Compiles a step in a process of its own. Raises UserError if the compiler fails."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.speed.compilers", task, framework, chip],
        capture_output=True,
        text=True,
        env=environment(CHIPS[chip]),
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise UserError(
            f"{TASKS[task]} is left out: {framework} does not compile for {chip}: {said[:200]}"
        )
    read = json.loads(lines[-1])
    return Cost(**{**read, "kernels": [Kernel(*each) for each in read["kernels"]]})


def row_of(task: str, framework: str, chip: str) -> Row:
    return Row(chip, TASKS[task], framework, cost_of(task, framework, chip))


def table_of(rows: Sequence[Row]) -> Table:
    """Returns the table of one chip: mnv2 beside plain Flax, whose cells may be empty."""
    lines = []
    on_tpu = bool(rows[0].cost.cycles)
    unit = 1e6 if on_tpu else 1e9
    for row in (row for row in rows if row.framework == "mnv2"):
        both = [row.cost, *(x.cost for x in rows if x.task == row.task and x is not row)]
        costs = [cost.cycles or cost.traffic() for cost in both]
        empty = [""] * (2 - len(both))
        cells = [*(f"{cost / unit:,.2f}" for cost in costs), *empty]
        cells.append(f"{costs[0] / costs[1]:.2f}" if not empty else "")
        if not on_tpu:
            cells += [*(f"{len(cost.kernels):,}" for cost in both), *empty]
        cells.append(f"{row.cost.memory / 1e9:.1f}")
        if not on_tpu:
            times = sum(each.by_bytes for each in row.cost.kernels), row.cost.seconds()
            cells += [f"{1e3 * seconds:.2f}" for seconds in times]
        images = f"{row.per_second:,.0f}" if row.per_second else ""
        lines.append([str(row.task), *cells, images])
    return Table(f"chips_{rows[0].chip}", TPU if on_tpu else GPU, lines)


def kinds_of(row: Row) -> Table:
    """Returns the sums over the kinds of a program's kernels."""
    lines = []
    for kind in [*KINDS, "all"]:
        kernels = [one for one in row.cost.kernels if kind in (one.kind, "all")]
        small = sum(one.traffic < SMALL for one in kernels)
        sums = [sum(getattr(one, name) for one in kernels) for name in ("traffic", *TIMES)]
        cells = f"{sums[0] / 1e9:.2f}", *(f"{1e3 * seconds:.2f}" for seconds in sums[1:])
        lines.append([kind, f"{len(kernels):,}", f"{small:,}", *cells])
    header = [str(row.task), "kernels", "below 10 MB", "GB", "ms by bytes", "ms by the larger"]
    return Table(f"kinds_{row.chip}", header, lines)


def main() -> None:
    parser = experiment_parser(__file__, __doc__)
    parser.add_argument("--chips", nargs="+", default=["v5e"], help=", ".join(CHIPS))
    parser.add_argument("--networks", nargs="+", default=list(TASKS), help=", ".join(TASKS))
    arguments = parser.parse_args()
    for chip in arguments.chips:
        check_choice(chip, CHIPS, "chip")
        check_installed(CHIPS[chip])
    for network in arguments.networks:
        check_choice(network, TASKS, "network")
    compiled = 0
    for chip in arguments.chips:
        programs = {
            f"{TASKS[task]} of {framework}": partial(row_of, task, framework, chip)
            for task, framework in itertools.product(arguments.networks, FRAMEWORKS)
        }
        rows = []
        for row in tried(f"compiling for {chip}", programs):
            what = f"{row.task} of {row.framework}"
            print(f"{chip:5} {what:42} {_amount(row.cost)}", flush=True)
            rows.append(row)
        if rows:
            table_of(rows).write(arguments.out)
            if rows[0].cost.kernels:
                kinds_of(rows[0]).write(arguments.out)
            for row in rows:
                if row.framework == "mnv2" and row.cost.kernels:
                    name = re.sub(r"\W+", "_", str(row.task))
                    write_csv(row.cost.kernels, arguments.out / f"kernels_{chip}_{name}.csv")
            compiled += len(rows)
    if not compiled:
        raise UserError("no step could be compiled")
    print(f"\nin {arguments.out}: a table per chip")


def _amount(cost: Cost) -> str:
    if cost.cycles:
        return f"{cost.cycles / 1e6:9.2f} M cycles"
    said = f"{cost.traffic() / 1e9:9.2f} GB, {len(cost.kernels):,} kernels"
    if not cost.seconds():
        return said
    lines = (
        f"{said}, {cost.small():,} of them move less than 10 MB each",
        f"{1e3 * cost.seconds():.2f} ms by the larger of bytes and instructions",
        f"{cost.narrow() / 1e9:.2f} GB are loaded two bytes at a time",
        f"{cost.not_counted() / 1e9:.2f} GB by kernels whose instructions are not known",
    )
    return "\n    ".join(lines)


if __name__ == "__main__":
    run(main)
