"""What does a training step cost on a TPU or GPU that is not here?

XLA's compilers for TPUs and NVIDIA GPUs run on any Linux machine. For each network, this compiles
the training step (forward, backward, SGD with momentum, bfloat16, one chip), of mnv2 and of the
same network in plain Flax, and reads from the programs what they will cost:

  TPU   the compiler's estimate of the cycles, and the images/s that follow at the chip's clock
  H100  the kernels, the bytes that they read and write, and the images/s at which the memory
        would be busy all the time: an upper bound

These are estimates of compilers, not measurements: they are for comparing two programs for the same
chip. Writes chips.csv and one table per chip to --out. `make tpu` and `make h100` install the
compilers into an environment of their own, run this command, and fill docs/accelerators.md. One
program takes 10 s to 4 minutes.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.common.writers import write_csv, write_markdown
from experiments.speed.compilers.chips import CHIPS, check_installed, environment
from experiments.speed.compilers.cost import Cost
from experiments.speed.compilers.steps import FRAMEWORKS, TASKS, Task
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.terminal import StatusLine, warn

TPU = ("network", "cycles, M", "plain Flax", "ratio", "memory, GB", "images/s (estimate)")
GPU = ("network", "traffic, GB", "plain Flax", "ratio", "kernels", "plain Flax", "memory, GB",
       "images/s (bound)")  # fmt: skip


class Row(NamedTuple):
    """The cost of one program, which trains a network.

    per_second  images per second; 0 if it is not known
    """

    chip: str
    network: str
    pixels: int
    batch: int
    framework: str
    cycles: float
    traffic: float
    kernels: int
    memory: float
    flops: float
    per_second: float
    compile_seconds: float


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
        raise UserError(f"{framework} does not compile for {chip}: {said[:200]}")
    return Cost(**json.loads(lines[-1]))


def to_row(task: str, framework: str, chip: str, cost: Cost) -> Row:
    """Returns the row of a cost, with the images per second that it implies."""
    what, target = TASKS[task], CHIPS[chip]
    seconds = 0.0
    if target.gigahertz:
        seconds = cost.cycles / (target.gigahertz * 1e9)
    elif target.bandwidth:
        seconds = cost.traffic / target.bandwidth
    return Row(
        chip=chip,
        network=what.title,
        pixels=what.size,
        batch=what.batch,
        framework=framework,
        cycles=cost.cycles,
        traffic=cost.traffic,
        kernels=cost.kernels,
        memory=cost.memory,
        flops=cost.flops,
        per_second=what.batch / seconds if seconds else 0.0,
        compile_seconds=cost.compile_seconds,
    )


def table(rows: Sequence[Row]) -> tuple[Sequence[str], list[list[str]]]:
    """Returns the header and the lines of the table of one chip: mnv2 beside plain Flax."""
    lines = []
    for ours in (row for row in rows if row.framework == "mnv2"):
        same = [r for r in rows if r.framework != "mnv2" and r[1:4] == ours[1:4]]
        stock = same[0] if same else None
        task = Task(ours.network, size=ours.pixels, batch=ours.batch)
        images = f"{ours.per_second:,.0f}" if ours.per_second else ""
        memory = f"{ours.memory / 1e9:.1f}"
        if ours.cycles:
            lines.append([str(task), *_compared(ours, stock, "cycles", 1e6), memory, images])
        else:
            kernels = [f"{ours.kernels:,}", f"{stock.kernels:,}" if stock else ""]
            traffic = _compared(ours, stock, "traffic", 1e9)
            lines.append([str(task), *traffic, *kernels, memory, images])
    return (TPU if rows[0].cycles else GPU), lines


def _compared(ours: Row, stock: Row | None, field: str, unit: float) -> list[str]:
    value = getattr(ours, field)
    if stock is None:
        return [f"{value / unit:,.2f}", "", ""]
    other = getattr(stock, field)
    return [f"{value / unit:,.2f}", f"{other / unit:,.2f}", f"{value / other:.2f}"]


def _print_kinds(cost: Cost, chip: str) -> None:
    """Prints the share of each kind of layer, largest first."""
    total = sum(cost.by_kind.values())
    shares = sorted(cost.by_kind.items(), key=lambda item: -item[1])
    print(f"  {chip}: " + ", ".join(f"{kind} {x / total:.0%}" for kind, x in shares if x))


def main() -> None:
    parser = command_parser("experiments.speed.chips", __doc__)
    parser.add_argument("--chips", nargs="+", default=["v5e"], help=", ".join(CHIPS))
    parser.add_argument("--networks", nargs="+", default=list(TASKS), help=", ".join(TASKS))
    parser.add_argument("--only", nargs="+", default=FRAMEWORKS, help=", ".join(FRAMEWORKS))
    parser.add_argument("--out", type=Path, default=Path("runs/chips"))
    arguments = parser.parse_args()
    _check(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for chip in arguments.chips:
        here = []
        for row in _rows(chip, arguments.networks, arguments.only):
            here.append(row)
            write_csv([*rows, *here], arguments.out / "chips.csv")
        if here:
            write_markdown(arguments.out, f"chips_{chip}", *table(here))
        rows += here
    if not rows:
        raise UserError("no step could be compiled")
    print(f"written: {arguments.out}/chips.csv and a table per chip")


def _rows(chip: str, networks: Sequence[str], frameworks: Sequence[str]) -> Iterator[Row]:
    """Yields and prints the cost of each program; one that does not compile is left out."""
    line = StatusLine("compiling")
    for number, (task, framework) in enumerate(itertools.product(networks, frameworks), start=1):
        what = f"{TASKS[task]} of {framework}"
        line.say(f"{chip} {number}/{len(networks) * len(frameworks)}  {what}")
        try:
            cost = cost_of(task, framework, chip)
        except UserError as error:
            line.clear()
            warn(f"{TASKS[task]} is left out: {error}")
            continue
        row = to_row(task, framework, chip, cost)
        line.clear()
        if row.cycles:
            amount = f"{row.cycles / 1e6:9.2f} M cycles"
        else:
            amount = f"{row.traffic / 1e9:9.2f} GB, {row.kernels:,} kernels"
        print(f"{chip:5} {what:42} {amount}  compiled in {row.compile_seconds:.0f} s", flush=True)
        if framework == "mnv2":
            _print_kinds(cost, chip)
        yield row


def _check(arguments: argparse.Namespace) -> None:
    """Raises UserError for names that do not exist and compilers that are not installed."""
    for name in arguments.chips:
        check_choice(name, CHIPS, "chip")
        check_installed(CHIPS[name])
    for name in arguments.networks:
        check_choice(name, TASKS, "network")
    for name in arguments.only:
        check_choice(name, FRAMEWORKS, "framework")


if __name__ == "__main__":
    run(main)
