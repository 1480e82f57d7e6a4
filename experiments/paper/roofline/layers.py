"""The time of each layer alone, compared to the least time that the machine's ceilings allow."""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.initialisation import random_network
from experiments.common.submodules import Submodule, submodules
from experiments.common.table import Table
from experiments.common.timing import Step, in_turns
from experiments.paper.roofline.machines import SIZE
from experiments.paper.roofline.model import Machine, intensity, layer_seconds
from experiments.paper.roofline.networks import TITLES, whole_network
from mnv2.analysis import complexity
from mnv2.models import fold_batch_norm
from mnv2.models.blocks import ConvBN
from mnv2.runtime.terminal import StatusLine

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
    times = in_turns(steps, rounds, seconds, lambda _: None)
    return Machine(
        flops=2 * n**3 / min(times["matrix product"]),
        bandwidth=2 * long.nbytes / min(times["copy"]),
    )


def _layer_step(layer: Submodule) -> Step:
    # Some values are below 0 and above 6, as between the layers of a network.
    values = np.random.default_rng(0).normal(scale=3, size=layer.input_shape)
    x = jnp.asarray(values, jnp.float32)
    apply = jax.jit(lambda x: layer.module.apply({"params": layer.params}, x))
    return lambda: jax.block_until_ready(apply(x))


def kind_of(path: str, layer: Submodule) -> str:
    """Returns the kind of a layer.

    "other" are the convolutions that are neither depthwise nor 1 x 1, and the classifier.
    """
    if path.endswith("depthwise"):
        return "depthwise"
    return "1 x 1" if layer.params["kernel"].shape[:2] == (1, 1) else "other"


def time_layers(
    name: str, machine: Machine, rounds: int, seconds: float, line: StatusLine
) -> tuple[list[LayerTime], float]:
    """Times a network, with a width multiplier of 1, and each of its layers, in turns.

    Returns the times of the layers, and the milliseconds of the whole network.
    """
    line.say(f"compiling the layers of {name}")
    model, variables = random_network(name, width=1.0)
    folded, shape = fold_batch_norm(model, variables), (LAYER_BATCH, SIZE, SIZE, 3)
    found = submodules(model, folded, shape, (ConvBN, nn.Dense))
    steps = {path: _layer_step(layer) for path, layer in found.items()}
    steps["network"] = whole_network(name, 1.0, LAYER_BATCH, folded=True)
    small, identity = jnp.zeros(1), jax.jit(lambda x: x + 1)
    steps["nothing"] = lambda: jax.block_until_ready(identity(small))
    times = {
        path: 1000 * statistics.median(of_layer)
        for path, of_layer in in_turns(steps, rounds, seconds, line.say).items()
    }
    rows = []
    for layer in complexity.layers(model, (SIZE, SIZE, 3)):
        # The cost of calling a program is taken off: the network pays it only once.
        measured = max(times[layer.name] - times["nothing"], 1e-6)
        kind, madds = kind_of(layer.name, found[layer.name]), layer.multiply_adds
        gflops = 2 * LAYER_BATCH * madds / measured / 1e6
        roofline = 1000 * layer_seconds(layer, machine, LAYER_BATCH)
        of_layer = (intensity(layer, LAYER_BATCH), gflops, measured, roofline)
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
    """Returns the shares of each kind of layer in a network, and its speed below the ceilings."""
    lines = []
    for (name, rows), kind in itertools.product(layers.items(), KINDS):
        if of_kind := [row for row in rows if row.kind == kind]:
            madds, measured, roofline = (
                sum(getattr(row, field) for row in of_kind)
                for field in ("multiply_adds", "measured", "roofline")
            )
            shares = (
                f"{100 * madds / sum(row.multiply_adds for row in rows):.1f}",
                f"{100 * measured / sum(row.measured for row in rows):.1f}",
            )
            speed = f"{100 * roofline / measured:.0f}"
            lines.append((f"{TITLES[name]}: {kind}", *shares, speed))
    header = ("layers", "share of MAdds, %", "share of time, %", "speed, % of the ceiling")
    return Table("latency_layers", header, lines)
