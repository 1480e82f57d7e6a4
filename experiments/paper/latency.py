"""Why can MobileNetV2 be slower than V1, with half of its multiply-adds? The roofline model.

    python -m experiments.paper.latency

    networks   the ms per image of V1, V2 and ResNet-50, for several batch sizes and numbers of
               threads, with batch norm folded and not folded
    ceilings   of this machine: the FLOP/s of a matrix product and the bytes/s of a copy
    layers     the time of each layer alone, and the least time that the ceilings allow; their sums,
               compared to the network's time, and the share of each kind of layer
    machines   the ratio of V2's time to V1's on machines where both have been measured, compared to
               the model's prediction from two numbers of the vendor; and predictions for others

Prints tables. Writes them and latency.png to --out.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.figure
import numpy as np

from experiments.paper.roofline import machines, networks
from experiments.paper.roofline.layers import (
    KINDS,
    LayerTime,
    measure_ceilings,
    table_of_kinds,
    table_of_sums,
    time_layers,
)
from experiments.paper.roofline.model import Machine
from experiments.paper.roofline.networks import NETWORKS, TITLES, Timed
from mnv2.runtime.cli import command_parser, real_number, run, whole_number
from mnv2.runtime.machine import keep_freed_memory
from mnv2.runtime.terminal import StatusLine


def draw(
    layers: Mapping[str, Sequence[LayerTime]],
    machine: Machine,
    ratios: Sequence[machines.Ratio],
    path: Path,
) -> None:
    """Draws the layers under this machine's roofline, and published against predicted ratios."""
    figure = matplotlib.figure.Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {"mobilenet_v1": "tab:blue", "mobilenet_v2": "black"}
    for name, color in colors.items():
        total = sum(row.measured for row in layers[name])
        for kind, marker in zip(KINDS, "osD", strict=True):
            of_kind = [row for row in layers[name] if row.kind == kind]
            left.scatter(
                [row.intensity for row in of_kind],
                [row.gflops for row in of_kind],
                s=[10 + 400 * row.measured / total for row in of_kind],
                marker=marker,
                facecolors=color if name == "mobilenet_v2" else "none",
                edgecolors=color,
                alpha=0.7,
                label=f"{TITLES[name]} {kind}",
            )
    x = np.geomspace(0.7, 130, 100)
    roof = np.minimum(machine.flops, x * machine.bandwidth) / 1e9
    left.plot(x, roof, color="0.4", linestyle="--", label="ceilings, measured")
    left.set_xscale("log")
    left.set_yscale("log")
    left.set_xlabel("FLOP per byte that must be moved")
    left.set_ylabel("GFLOP/s reached")
    left.set_title("Layers on this machine (area: share of the network's time)", fontsize="medium")
    left.legend(fontsize="small")
    known = [row for row in ratios if row.published is not None]
    labels: dict[tuple[float, float], str] = {}  # by position; points that touch share a label
    for number, row in enumerate(known, 1):
        assert row.published is not None
        here = (row.predicted, row.published)
        right.scatter(*here, marker="o" if row.agrees else "X", color="k")
        near = [at for at in labels if np.all(np.abs(np.subtract(at, here)) < (0.02, 0.04))]
        position = near[0] if near else here
        labels[position] = f"{labels[position]}, {number}" if near else str(number)
    for position, label in labels.items():
        right.annotate(
            label, position, xytext=(6, -3), textcoords="offset points", fontsize="small"
        )
    right.margins(0.13)
    right.axhline(1, color="0.6", linewidth=0.8)
    right.axvline(1, color="0.6", linewidth=0.8)
    right.set_xlabel("V2's time over V1's, predicted")
    right.set_ylabel("published")
    names = "\n".join(f"{i} {row.machine}" for i, row in enumerate(known, 1))
    right.text(1.02, 0.98, names, transform=right.transAxes, va="top", fontsize="small")
    right.set_title("Above 1, V2 is slower; X: predicted wrongly", fontsize="medium")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = command_parser("experiments.paper.latency", __doc__)
    parser.add_argument("--rounds", type=whole_number(), default=5)
    parser.add_argument(
        "--seconds", type=real_number(), default=0.3, help="least length of a network's turn"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    parser.add_argument(
        "--machines",
        action="store_true",
        help="only print the table of machines, without measuring",
    )
    arguments = parser.parse_args()
    ratios = machines.machines()
    if arguments.machines:
        print(machines.table(ratios))
        machines.print_agreement(ratios)
        return
    cores = len(os.sched_getaffinity(0))
    timed: list[Timed] = []
    for threads in sorted({1, cores}):
        timed += networks.time_networks(NETWORKS, threads, arguments.rounds, arguments.seconds)
    networks.table(timed).write(arguments.out, timed)
    machine = measure_ceilings(arguments.rounds, arguments.seconds)
    print(
        f"\nceilings: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s; "
        f"below {machine.ridge:.1f} FLOP per byte, memory is the limit"
    )
    layers: dict[str, list[LayerTime]] = {}
    whole: dict[str, float] = {}
    line = StatusLine("layers")
    for name in TITLES:
        # The turns are short, since there are 135 layers.
        layers[name], whole[name] = time_layers(name, machine, 2 * arguments.rounds, 0.02, line)
        line.clear()
    table_of_sums(layers, whole).write(arguments.out)
    records = [row for rows in layers.values() for row in rows]
    table_of_kinds(layers).write(arguments.out, records)
    machines.table(ratios).write(arguments.out, ratios)
    machines.print_agreement(ratios)
    draw(layers, machine, ratios, arguments.out / "latency.png")
    print(f"\nin {arguments.out}: the tables, as Markdown and CSV, and latency.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
