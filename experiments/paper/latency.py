"""Why can MobileNetV2 be slower than V1, with half of its multiply-adds? The roofline model.

networks   the ms per image of V1, V2 and ResNet-50, for several batch sizes and numbers of
           threads, with batch norm folded and not folded
ceilings   of this machine: the FLOP/s of a matrix product and the bytes/s of a copy
layers     the time of each layer alone, and the least time that the ceilings allow; their sums,
           compared to the network's time, and the share of each kind of layer
machines   the ratio of V2's time to V1's on machines where both have been measured, compared to
           the model's prediction from two numbers of the vendor; and predictions for others
"""

import os
from collections.abc import Mapping, Sequence

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from experiments.common.command import experiment_parser
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
from experiments.paper.roofline.networks import TITLES, Timed
from mnv2.runtime.cli import run
from mnv2.runtime.machine import keep_freed_memory
from mnv2.runtime.terminal import StatusLine


def draw_layers(axis: Axes, layers: Mapping[str, Sequence[LayerTime]], machine: Machine) -> None:
    """Draws the layers under this machine's roofline."""
    for name, color in (("mobilenet_v1", "tab:blue"), ("mobilenet_v2", "black")):
        total = sum(row.measured for row in layers[name])
        for kind, marker in zip(KINDS, "osD", strict=True):
            of_kind = [row for row in layers[name] if row.kind == kind]
            axis.scatter(
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
    axis.plot(x, roof, color="0.4", linestyle="--", label="ceilings, measured")
    axis.set(xscale="log", yscale="log")
    axis.set(xlabel="FLOP per byte that must be moved", ylabel="GFLOP/s reached")
    axis.set_title("Layers on this machine (area: share of the network's time)", fontsize="medium")
    axis.legend(fontsize="small")


def draw_ratios(axis: Axes, ratios: Sequence[machines.Ratio]) -> None:
    """Draws published against predicted ratios, with a number for each machine."""
    known = [(row.predicted, row.published, row) for row in ratios if row.published is not None]
    labels: dict[tuple[float, float], str] = {}  # by position; points that touch share a label
    for number, (*here, row) in enumerate(known, 1):
        axis.scatter(*here, marker="o" if row.agrees else "X", color="k")
        near = [at for at in labels if np.all(np.abs(np.subtract(at, here)) < (0.02, 0.04))]
        position = near[0] if near else (here[0], here[1])
        labels[position] = f"{labels[position]}, {number}" if near else str(number)
    for position, label in labels.items():
        axis.annotate(label, position, xytext=(6, -3), textcoords="offset points", fontsize="small")
    axis.margins(0.13)
    axis.axhline(1, color="0.6", linewidth=0.8)
    axis.axvline(1, color="0.6", linewidth=0.8)
    axis.set(xlabel="V2's time over V1's, predicted", ylabel="published")
    names = "\n".join(f"{i} {row.machine}" for i, (*_, row) in enumerate(known, 1))
    axis.text(1.02, 0.98, names, transform=axis.transAxes, va="top", fontsize="small")
    axis.set_title("Above 1, V2 is slower; X: predicted wrongly", fontsize="medium")


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, rounds=5, seconds=0.3).parse_args()
    out, rounds = arguments.out, arguments.rounds
    timed: list[Timed] = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        timed += networks.time_networks(threads, rounds, arguments.seconds)
    networks.table(timed).write(out, timed)
    machine = measure_ceilings(rounds, arguments.seconds)
    print(
        f"\nceilings: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s; "
        f"below {machine.ridge:.1f} FLOP per byte, memory is the limit"
    )
    layers: dict[str, list[LayerTime]] = {}
    whole: dict[str, float] = {}
    line = StatusLine("layers")
    for name in TITLES:
        # The turns are short, since there are 135 layers.
        layers[name], whole[name] = time_layers(name, machine, 2 * rounds, 0.02, line)
        line.clear()
    table_of_sums(layers, whole).write(out)
    table_of_kinds(layers).write(out, [row for rows in layers.values() for row in rows])
    ratios = machines.machines()
    machines.table(ratios).write(out, ratios)
    right, known = sum(row.agrees for row in ratios), sum(bool(row.published) for row in ratios)
    print(f"V2 faster or slower: predicted correctly for {right} of {known} machines")
    figure = matplotlib.figure.Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots(1, 2)
    draw_layers(axes[0], layers, machine)
    draw_ratios(axes[1], ratios)
    figure.savefig(out / "latency.png", dpi=110)
    print(f"\nin {out}: the tables, as Markdown and CSV, and latency.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
