"""Why can MobileNetV2 be slower than V1, with half of its multiply-adds? The roofline model.

Times V1, V2 and ResNet-50, for several batch sizes and numbers of threads, with batch norm folded
and not folded; this machine's ceilings, which are the FLOP/s of a matrix product and the bytes/s of
a copy; and each layer alone, beside the least time that the ceilings allow. Compares the ratio of
V2's time to V1's on machines where both have been measured to the model's prediction.
"""

import itertools
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from experiments.common.experiment import Table, experiment_parser, run
from experiments.common.networks import Submodule, normal, random_network, submodules
from experiments.common.timing import Step, in_process, in_turns
from experiments.paper import roofline
from experiments.paper.roofline import SIZE, Machine, Ratio
from mnv2.analysis import complexity
from mnv2.models import fold_batch_norm, for_inference
from mnv2.models.blocks import ConvBN
from mnv2.runtime.machine import keep_freed_memory

TITLES = {"mobilenet_v1": "V1", "mobilenet_v2": "V2", "resnet50": "ResNet-50"}
NETWORKS = (
    ("mobilenet_v1", 1.0),
    ("mobilenet_v2", 0.5),
    ("mobilenet_v2", 1.0),
    ("mobilenet_v2", 1.4),
    ("resnet50", 1.0),
)
BATCHES = (1, 32)
LAYER_BATCH = 4  # on CPU a network takes this many images through its layers at a time
KINDS = ("depthwise", "1 x 1", "other")


class LayerTime(NamedTuple):
    """The time of one layer alone, on LAYER_BATCH images."""

    network: str
    layer: str
    kind: str  # one of KINDS
    multiply_adds: int
    intensity: float  # FLOP per byte
    gflops: float  # GFLOP/s that the layer reached
    measured: float  # milliseconds
    roofline: float  # milliseconds, the least that the ceilings allow


def whole_network(name: str, width: float, batch: int, folded: bool) -> Step:
    """Compiles the inference of a network on `batch` images, with batch norm folded or not."""
    model, variables = random_network(name, width=width)
    x = normal((batch, SIZE, SIZE, 3))
    if folded:
        apply = for_inference(model, variables)
    else:
        apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    return lambda: jax.block_until_ready(apply(x))


def time_networks(threads: int, rounds: int, seconds: float) -> list[tuple[object, ...]]:
    """Times NETWORKS in turns, with each of BATCHES. JAX must not have computed before.

    With all of the machine's threads, batch norm is also timed as an operation of its own. Returns
    the lines of the table: milliseconds per image, the median of the rounds and their range.
    """
    all_cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, all_cores[:threads])  # XLA takes its number of threads from this
    foldings = (True, False) if threads == len(all_cores) else (True,)
    steps = {
        (name, width, batch, folded): whole_network(name, width, batch, folded)
        for (name, width), batch, folded in itertools.product(NETWORKS, BATCHES, foldings)
    }
    measured = in_turns(steps, rounds, seconds, f"{threads} threads")
    lines: list[tuple[object, ...]] = []
    for (name, width, batch, folded), times in measured.items():
        each = [1000 * time / batch for time in times]
        cell = f"{statistics.median(each):.2f} ({min(each):.2f}-{max(each):.2f})"
        norm = "folded" if folded else "not folded"
        lines.append((f"{TITLES[name]} {width:g}", batch, threads, norm, cell))
    return lines


def measure_ceilings(rounds: int, seconds: float) -> Machine:
    """Measures this machine's FLOP/s in a matrix product and bytes/s in a copy; the best round."""
    n = 2048
    square = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    long = jnp.zeros(2**26, jnp.float32)  # 256 MiB, far larger than the caches
    copy = jax.jit(lambda x: x + 1)
    steps: dict[str, Step] = {
        "matrix product": lambda: jax.block_until_ready(product(square)),
        "copy": lambda: jax.block_until_ready(copy(long)),
    }
    best = [min(times) for times in in_turns(steps, rounds, seconds, "ceilings").values()]
    return Machine(2 * n**3 / best[0], 2 * long.nbytes / best[1])


def _layer_step(layer: Submodule) -> Step:
    # Some values are below 0 and above 6, as between the layers of a network.
    x = normal(layer.input_shape, scale=3)
    apply = jax.jit(lambda x: layer.module.apply({"params": layer.params}, x))
    return lambda: jax.block_until_ready(apply(x))


def _kind_of(path: str, layer: Submodule) -> str:
    if path.endswith("depthwise"):
        return "depthwise"
    return "1 x 1" if layer.params["kernel"].shape[:2] == (1, 1) else "other"


def time_layers(
    name: str, machine: Machine, rounds: int, seconds: float
) -> tuple[list[LayerTime], float]:
    """Times a network, with a width multiplier of 1, and each of its layers, in turns.

    Returns the times of the layers, and the milliseconds of the whole network.
    """
    model, variables = random_network(name, width=1.0)
    folded, shape = fold_batch_norm(model, variables), (LAYER_BATCH, SIZE, SIZE, 3)
    found = submodules(model, folded, shape, (ConvBN, nn.Dense))
    steps = {path: _layer_step(layer) for path, layer in found.items()}
    steps["network"] = whole_network(name, 1.0, LAYER_BATCH, folded=True)
    small, identity = jnp.zeros(1), jax.jit(lambda x: x + 1)
    steps["nothing"] = lambda: jax.block_until_ready(identity(small))
    times = {
        path: 1000 * statistics.median(of_layer)
        for path, of_layer in in_turns(steps, rounds, seconds, f"layers of {name}").items()
    }
    rows = []
    for layer in complexity.layers(model, (SIZE, SIZE, 3)):
        # The cost of calling a program is taken off: the network pays it only once.
        measured = max(times[layer.name] - times["nothing"], 1e-6)
        kind, madds = _kind_of(layer.name, found[layer.name]), layer.multiply_adds
        gflops = 2 * LAYER_BATCH * madds / measured / 1e6
        least = 1000 * roofline.layer_seconds(layer, machine, LAYER_BATCH)
        of_layer = (roofline.intensity(layer, LAYER_BATCH), gflops, measured, least)
        rows.append(LayerTime(name, layer.name, kind, madds, *of_layer))
    return rows, times["network"]


def table_of_sums(layers: Mapping[str, Sequence[LayerTime]], whole: Mapping[str, float]) -> Table:
    """Compares the milliseconds of each network to the sum over its layers, and at the ceilings."""
    lines = []
    for name, rows in layers.items():
        sums = (sum(row.measured for row in rows), sum(row.roofline for row in rows))
        cells = (f"{time:.1f} ({time / whole[name]:.0%})" for time in sums)
        lines.append((TITLES[name], f"{whole[name]:.1f}", *cells))
    header = ("network", "whole network, ms", "sum of its layers, ms", "at the ceilings, ms")
    return Table("latency_sums", header, lines)


def table_of_kinds(layers: Mapping[str, Sequence[LayerTime]]) -> Table:
    lines = []
    for (name, rows), kind in itertools.product(layers.items(), KINDS):
        if of_kind := [row for row in rows if row.kind == kind]:
            _, _, _, madds, _, _, measured, least = zip(*of_kind, strict=True)
            shares = (
                100 * sum(madds) / sum(row.multiply_adds for row in rows),
                100 * sum(measured) / sum(row.measured for row in rows),
            )
            speed = f"{100 * sum(least) / sum(measured):.0f}"
            lines.append((f"{TITLES[name]}: {kind}", *(f"{x:.1f}" for x in shares), speed))
    header = ("layers", "share of MAdds, %", "share of time, %", "speed, % of the ceiling")
    return Table("latency_layers", header, lines)


def draw_layers(axis: Axes, layers: Mapping[str, Sequence[LayerTime]], machine: Machine) -> None:
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


def draw_ratios(axis: Axes, rows: Sequence[Ratio]) -> None:
    """Draws published against predicted ratios, with a number for each machine."""
    known = [(row.predicted, row.published, row) for row in rows if row.published is not None]
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
    out: Path = arguments.out
    rounds, seconds = arguments.rounds, arguments.seconds
    timed = []
    for threads in sorted({1, len(os.sched_getaffinity(0))}):
        timed += in_process(time_networks, threads, rounds, seconds)
    header = ("network", "batch", "threads", "batch norm", "ms per image")
    Table("latency_networks", header, timed).write(out)
    machine = measure_ceilings(rounds, seconds)
    print(
        f"\nceilings: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s; "
        f"below {machine.ridge:.1f} FLOP per byte, memory is the limit"
    )
    layers: dict[str, list[LayerTime]] = {}
    whole: dict[str, float] = {}
    for name in TITLES:  # the turns are short, since there are 135 layers
        layers[name], whole[name] = time_layers(name, machine, 2 * rounds, 0.02)
    table_of_sums(layers, whole).write(out)
    table_of_kinds(layers).write(out, [row for rows in layers.values() for row in rows])
    found = roofline.ratios()
    roofline.table_of_ratios(found).write(out, found)
    right, known = sum(row.agrees for row in found), sum(bool(row.published) for row in found)
    print(f"V2 faster or slower: predicted correctly for {right} of {known} machines")
    figure = matplotlib.figure.Figure(figsize=(12, 5), layout="constrained")
    left, right_axis = figure.subplots(1, 2)
    draw_layers(left, layers, machine)
    draw_ratios(right_axis, found)
    figure.savefig(out / "latency.png", dpi=110)
    print(f"\nin {out}: the tables and latency.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
