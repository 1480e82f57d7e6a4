"""When is MobileNetV2 slower than V1, with half of its multiply-adds? The roofline model.

    python -m experiments.latency

    networks   V1, V2 and ResNet-50, batch norm folded and not, batches, threads: ms an image
    ceilings   of this machine: a matrix product's FLOP/s, a copy's bytes a second
    layers     every layer by itself: its time, and the least time that the ceilings allow. Their
               sum against the network's time, and the share of each kind of layer
    machines   V2's time over V1's on machines where someone measured both, beside the model's
               prediction from two numbers of the machine's vendor; and predicted for others

Prints tables; writes networks.csv, layers.csv, machines.csv and latency.png to --out.
"""

import itertools
import json
import multiprocessing
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from experiments.contenders import random_statistics, unoptimised
from experiments.machines import (
    MACHINE_HEADER,
    SIZE,
    Ratio,
    machine_cells,
    machines,
    print_machines,
)
from experiments.submodules import Submodule, at, submodules
from experiments.tables import write_csv, write_markdown
from experiments.timing import Step, in_turns
from mnv2.analysis import complexity
from mnv2.analysis.roofline import Machine, intensity, layer_seconds
from mnv2.models import create_model, fold_batch_norm, for_inference
from mnv2.models.blocks import ConvBN
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import check_positive
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.runtime.throughput import Progress

NETWORKS = (
    ("mobilenet_v1", 1.0),
    ("mobilenet_v2", 0.5),
    ("mobilenet_v2", 1.0),
    ("mobilenet_v2", 1.4),
    ("resnet50", 1.0),
)
BATCHES = (1, 32)
# As many images as a network takes through its layers at a time, on CPU.
LAYER_BATCH = 4
TITLES = {"mobilenet_v1": "V1", "mobilenet_v2": "V2", "resnet50": "ResNet-50"}
KINDS = ("depthwise", "1 x 1", "other")


class Timed(NamedTuple):
    """A network's milliseconds an image: median over rounds, and their range."""

    network: str
    width: float
    batch: int
    threads: int
    folded: bool
    median: float
    lowest: float
    highest: float


class LayerTime(NamedTuple):
    """A layer by itself, on LAYER_BATCH images. Times in milliseconds."""

    network: str
    layer: str
    kind: str
    multiply_adds: int
    intensity: float  # FLOP per byte
    gflops: float  # a second, reached
    measured: float
    roofline: float


def random_network(name: str, width: float) -> tuple[nn.Module, Any]:
    model: Any = create_model(name, width=width)
    variables = unoptimised(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return model, random_statistics(variables)


def images(batch: int) -> jax.Array:
    shape = (batch, SIZE, SIZE, 3)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def whole_network(name: str, width: float, batch: int, folded: bool) -> Step:
    """One inference of a network, compiled."""
    model, variables = random_network(name, width)
    x = images(batch)
    apply = for_inference(model, variables) if folded else jax.jit(_as_trained(model, variables))
    return lambda: jax.block_until_ready(apply(x))


def _as_trained(model: nn.Module, variables: Any) -> Any:
    return lambda x: model.apply(variables, x, train=False)


def time_networks(
    names: Sequence[tuple[str, float]], threads: int, rounds: int, seconds: float
) -> list[Timed]:
    """All networks and batches with so many threads, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    arguments = (names, threads, rounds, seconds, sending)
    process = context.Process(target=_time_networks, args=arguments)
    process.start()
    sending.close()
    rows = [Timed(*row) for row in json.loads(receiving.recv())]
    process.join()
    return rows


def _time_networks(
    names: Sequence[tuple[str, float]], threads: int, rounds: int, seconds: float, sending: Any
) -> None:
    all_cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, all_cores[:threads])  # XLA takes its number of threads from this
    progress = Progress(f"{threads} threads", 1, 1)
    # Batch norm as an operation of its own on all threads alone.
    foldings = (True, False) if threads == len(all_cores) else (True,)
    steps: dict[tuple[str, float, int, bool], Step] = {}
    for (name, width), batch, folded in itertools.product(names, BATCHES, foldings):
        progress.say(f"compiling {name} {width:g}, batch {batch}")
        steps[name, width, batch, folded] = whole_network(name, width, batch, folded)
    medians = in_turns(steps, rounds, seconds, progress.say)
    progress.clear()
    rows = []
    for (name, width, batch, folded), times in medians.items():
        each = [1000 * time / batch for time in times]
        rows.append(
            Timed(
                name, width, batch, threads, folded, statistics.median(each), min(each), max(each)
            )
        )
    sending.send(json.dumps(rows))


def layer_steps(model: Any, variables: Any, batch: int) -> dict[str, Step]:
    """Each layer of a network with batch norm folded, compiled by itself: by its path."""
    folded = fold_batch_norm(model, variables)
    layers = submodules(model, folded, (batch, SIZE, SIZE, 3), (ConvBN, nn.Dense))
    return {path: _layer_step(layer) for path, layer in layers.items()}


def _layer_step(layer: Submodule) -> Step:
    # Some of it below 0 and above 6, as between layers.
    values = np.random.default_rng(0).normal(scale=3, size=layer.input_shape)
    x = jnp.asarray(values, jnp.float32)
    apply = jax.jit(lambda x: layer.module.apply({"params": layer.params}, x))
    return lambda: jax.block_until_ready(apply(x))


def measure_ceilings(rounds: int, seconds: float) -> Machine:
    """This machine's FLOP/s in a matrix product, and bytes a second in a copy; the best round."""
    n = 2048
    square = jnp.ones((n, n), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    long = jnp.zeros(2**26, jnp.float32)  # 256 MiB: far beyond the caches
    copy = jax.jit(lambda x: x + 1)
    steps: dict[str, Step] = {
        "matrix product": lambda: jax.block_until_ready(product(square)),
        "copy": lambda: jax.block_until_ready(copy(long)),
    }
    times = in_turns(steps, rounds, seconds, lambda _: None)
    return Machine(
        flops=2 * n**3 / min(times["matrix product"]),
        bandwidth=2 * long.nbytes / min(times["copy"]),
    )


def kind_of(layer: complexity.Layer, kernel: tuple[int, ...]) -> str:
    """depthwise, 1 x 1, or other: the convolutions that are neither, and the classifier."""
    if layer.name.endswith("depthwise"):
        return "depthwise"
    return "1 x 1" if kernel[:2] == (1, 1) else "other"


def time_layers(
    name: str, machine: Machine, rounds: int, seconds: float, progress: Progress
) -> tuple[list[LayerTime], float]:
    """(each layer's times, the whole network's milliseconds), measured in turns."""
    model, variables = random_network(name, 1.0)
    progress.say(f"compiling the layers of {name}")
    small, identity = jnp.zeros(1), jax.jit(lambda x: x + 1)
    steps = layer_steps(model, variables, LAYER_BATCH)
    steps["network"] = whole_network(name, 1.0, LAYER_BATCH, folded=True)
    steps["nothing"] = lambda: jax.block_until_ready(identity(small))
    times = {
        path: 1000 * statistics.median(of_layer)
        for path, of_layer in in_turns(steps, rounds, seconds, progress.say).items()
    }
    rows = []
    for layer in complexity.layers(model, (SIZE, SIZE, 3)):
        # Without what it takes to call any program: in the network that is paid once.
        measured = max(times[layer.name] - times["nothing"], 1e-6)
        kernel = at(variables["params"], tuple(layer.name.split("/")))["kernel"].shape
        rows.append(
            LayerTime(
                name,
                layer.name,
                kind_of(layer, kernel),
                layer.multiply_adds,
                intensity(layer, LAYER_BATCH),
                2 * LAYER_BATCH * layer.multiply_adds / measured / 1e6,
                measured,
                1000 * layer_seconds(layer, machine, LAYER_BATCH),
            )
        )
    return rows, times["network"]


NETWORK_HEADER = ("network", "batch", "threads", "batch norm", "ms an image")


def print_networks(rows: Sequence[Timed]) -> None:
    print("\nms an image: median over rounds and their range")
    for line in (NETWORK_HEADER, *(network_cells(row) for row in rows)):
        print(f"  {line[0]:14} {line[1]:>5} {line[2]:>7}  {line[3]:10}  {line[4]}")


def network_cells(row: Timed) -> tuple[str, ...]:
    return (
        f"{TITLES[row.network]} {row.width:g}",
        str(row.batch),
        str(row.threads),
        "folded" if row.folded else "not folded",
        f"{row.median:.2f} ({row.lowest:.2f}-{row.highest:.2f})",
    )


class Share(NamedTuple):
    """A kind of layer in a network: shares of the whole, in per cent, and % of the roofline."""

    network: str
    kind: str
    multiply_adds: float
    measured: float
    of_roofline: float


def shares(rows: Sequence[LayerTime]) -> list[Share]:
    """What each kind of layer has of one network's multiply-adds and of its layers' time."""
    total_madds = sum(row.multiply_adds for row in rows)
    total = sum(row.measured for row in rows)
    found = []
    for kind in KINDS:
        of_kind = [row for row in rows if row.kind == kind]
        if of_kind:
            measured = sum(row.measured for row in of_kind)
            found.append(
                Share(
                    rows[0].network,
                    kind,
                    100 * sum(row.multiply_adds for row in of_kind) / total_madds,
                    100 * measured / total,
                    100 * sum(row.roofline for row in of_kind) / measured,
                )
            )
    return found


class Sum(NamedTuple):
    """A network's milliseconds for LAYER_BATCH images: whole, of its layers, at the ceilings."""

    network: str
    whole: float
    layers: float
    roofline: float


def sum_of(rows: Sequence[LayerTime], whole: float) -> Sum:
    measured, roofline = (sum(times) for times in zip(*(row[-2:] for row in rows), strict=True))
    return Sum(rows[0].network, whole, measured, roofline)


def sum_cells(row: Sum) -> tuple[str, ...]:
    return (
        TITLES[row.network],
        f"{row.whole:.1f}",
        f"{row.layers:.1f} ({row.layers / row.whole:.0%})",
        f"{row.roofline:.1f} ({row.roofline / row.whole:.0%})",
    )


def share_cells(row: Share) -> tuple[str, ...]:
    return (
        f"{TITLES[row.network]}: {row.kind}",
        f"{row.multiply_adds:.1f}",
        f"{row.measured:.1f}",
        f"{row.of_roofline:.0f}",
    )


SUM_HEADER = ("network", "whole, ms", "sum of its layers, ms", "at the ceilings, ms")
SHARE_HEADER = ("layers", "of the MAdds, %", "of the time, %", "of the ceiling's speed, %")


def print_layers(sums: Sequence[Sum], of_kinds: Sequence[Share]) -> None:
    print(f"\n{LAYER_BATCH} images, batch norm folded, all threads")
    for line in (SUM_HEADER, *(sum_cells(row) for row in sums)):
        print(f"  {line[0]:22} {line[1]:>16} {line[2]:>22} {line[3]:>26}")
    print()
    for line in (SHARE_HEADER, *(share_cells(row) for row in of_kinds)):
        print(f"  {line[0]:22} {line[1]:>16} {line[2]:>22} {line[3]:>26}")


def draw(
    layers: Mapping[str, Sequence[LayerTime]],
    machine: Machine,
    ratios: Sequence[Ratio],
    path: Path,
) -> None:
    """Layers under this machine's roofline; predicted against published ratios."""
    figure = matplotlib.figure.Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = {"mobilenet_v1": "tab:blue", "mobilenet_v2": "black"}
    for name, color in colors.items():
        for kind, marker in zip(KINDS, "osD", strict=True):
            of_kind = [row for row in layers[name] if row.kind == kind]
            left.scatter(
                [row.intensity for row in of_kind],
                [row.gflops for row in of_kind],
                s=[10 + 4 * 100 * row.measured / _total(layers[name]) for row in of_kind],
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
    for i, row in enumerate(known, 1):
        assert row.published is not None
        right.scatter(row.predicted, row.published, marker="o" if row.agrees else "X", color="k")
        right.annotate(
            str(i), (row.predicted, row.published), xytext=(5, 2), textcoords="offset points"
        )
    right.margins(0.08)
    right.axhline(1, color="0.6", linewidth=0.8)
    right.axvline(1, color="0.6", linewidth=0.8)
    right.set_xlabel("V2's time over V1's, predicted")
    right.set_ylabel("published")
    names = "\n".join(f"{i} {row.machine}" for i, row in enumerate(known, 1))
    right.text(1.02, 0.98, names, transform=right.transAxes, va="top", fontsize="small")
    right.set_title("Above 1, V2 is slower; X: predicted wrongly", fontsize="medium")
    figure.savefig(path, dpi=110)


def _total(rows: Sequence[LayerTime]) -> float:
    return sum(row.measured for row in rows)


def main() -> None:
    parser = command_parser("experiments.latency", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a network's turn, at least")
    parser.add_argument("--out", type=Path, default=Path("runs/latency"))
    parser.add_argument(
        "--machines", action="store_true", help="only the published and predicted machines"
    )
    arguments = parser.parse_args()
    check_positive(arguments.rounds, "--rounds")
    if arguments.machines:
        print_machines(machines())
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    cores = len(os.sched_getaffinity(0))
    networks: list[Timed] = []
    for threads in sorted({1, cores}):
        networks += time_networks(NETWORKS, threads, arguments.rounds, arguments.seconds)
    print_networks(networks)
    write_csv(networks, arguments.out / "networks.csv")
    machine = measure_ceilings(arguments.rounds, arguments.seconds)
    print(
        f"\nceilings: {machine.flops / 1e9:.0f} GFLOP/s, {machine.bandwidth / 1e9:.1f} GB/s; "
        f"below {machine.ridge:.1f} FLOP per byte memory is the limit"
    )
    layers: dict[str, list[LayerTime]] = {}
    sums: list[Sum] = []
    progress = Progress("layers", 1, 1)
    for name in TITLES:
        # A turn of a layer is short: there are 135 of them.
        rows, whole = time_layers(name, machine, 2 * arguments.rounds, 0.02, progress)
        progress.clear()
        layers[name] = rows
        sums.append(sum_of(rows, whole))
    of_kinds = [share for rows in layers.values() for share in shares(rows)]
    print_layers(sums, of_kinds)
    write_csv([row for rows in layers.values() for row in rows], arguments.out / "layers.csv")
    ratios = machines()
    print_machines(ratios)
    write_csv(ratios, arguments.out / "machines.csv")
    for name, header, cells in (
        ("latency_networks", NETWORK_HEADER, [network_cells(row) for row in networks]),
        ("latency_sums", SUM_HEADER, [sum_cells(row) for row in sums]),
        ("latency_layers", SHARE_HEADER, [share_cells(row) for row in of_kinds]),
        ("latency_machines", MACHINE_HEADER, [machine_cells(row) for row in ratios]),
    ):
        write_markdown(arguments.out, name, header, cells)
    draw(layers, machine, ratios, arguments.out / "latency.png")
    print(f"\nwritten: {arguments.out}/networks.csv, layers.csv, machines.csv, latency.png")


if __name__ == "__main__":
    restart_with_huge_pages("experiments.latency")
    run(main)
