"""The time of each layer alone, compared to the least time that the machine's ceilings allow."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.initialisation import random_network
from experiments.common.submodules import Submodule, at, submodules
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
SUM_HEADER = ("network", "whole network, ms", "sum of its layers, ms", "at the ceilings, ms")
SHARE_HEADER = ("layers", "share of MAdds, %", "share of time, %", "speed, % of the ceiling")


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


class Share(NamedTuple):
    """One kind of layer in a network: its shares of the whole and its speed, all in per cent."""

    network: str
    kind: str
    multiply_adds: float  # share of the network's multiply-adds
    measured: float  # share of the layers' time
    of_roofline: float  # speed, relative to the ceilings


class Sum(NamedTuple):
    """The milliseconds of one network, on LAYER_BATCH images."""

    network: str
    whole: float  # of the network, measured
    layers: float  # the sum over its layers, each measured alone
    roofline: float  # the sum over its layers, each at the ceilings


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


def layer_steps(model: Any, variables: Any, batch: int) -> dict[str, Step]:
    """Compiles each layer of a network alone, with batch norm folded. Returns them by path."""
    folded = fold_batch_norm(model, variables)
    layers = submodules(model, folded, (batch, SIZE, SIZE, 3), (ConvBN, nn.Dense))
    return {path: _layer_step(layer) for path, layer in layers.items()}


def _layer_step(layer: Submodule) -> Step:
    # Some values are below 0 and above 6, as between the layers of a network.
    values = np.random.default_rng(0).normal(scale=3, size=layer.input_shape)
    x = jnp.asarray(values, jnp.float32)
    apply = jax.jit(lambda x: layer.module.apply({"params": layer.params}, x))
    return lambda: jax.block_until_ready(apply(x))


def kind_of(layer: complexity.Layer, kernel: tuple[int, ...]) -> str:
    """Returns the kind of a layer with this shape of kernel.

    "other" are the convolutions that are neither depthwise nor 1 x 1, and the classifier.
    """
    if layer.name.endswith("depthwise"):
        return "depthwise"
    return "1 x 1" if kernel[:2] == (1, 1) else "other"


def time_layers(
    name: str, machine: Machine, rounds: int, seconds: float, line: StatusLine
) -> tuple[list[LayerTime], float]:
    """Times a network and each of its layers, in turns.

    Args:
        name: The network; its width multiplier is 1.
        machine: The ceilings of this machine.
        rounds: The number of turns of each layer.
        seconds: The least time of one turn.
        line: Shows which step is timed.

    Returns:
        The times of each layer, and the milliseconds of the whole network.
    """
    model, variables = random_network(name, width=1.0)
    line.say(f"compiling the layers of {name}")
    small, identity = jnp.zeros(1), jax.jit(lambda x: x + 1)
    steps = layer_steps(model, variables, LAYER_BATCH)
    steps["network"] = whole_network(name, 1.0, LAYER_BATCH, folded=True)
    steps["nothing"] = lambda: jax.block_until_ready(identity(small))
    times = {
        path: 1000 * statistics.median(of_layer)
        for path, of_layer in in_turns(steps, rounds, seconds, line.say).items()
    }
    rows = []
    for layer in complexity.layers(model, (SIZE, SIZE, 3)):
        # The cost of calling a program is taken off: the network pays it only once.
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


def shares(rows: Sequence[LayerTime]) -> list[Share]:
    """Returns the shares of each kind of layer, from the layers of one network."""
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


def sum_of(rows: Sequence[LayerTime], whole: float) -> Sum:
    """Adds up the layers of one network. `whole` is the time of the network itself, in ms."""
    measured, roofline = (sum(times) for times in zip(*(row[-2:] for row in rows), strict=True))
    return Sum(rows[0].network, whole, measured, roofline)


def tables(sums: Sequence[Sum], of_kinds: Sequence[Share]) -> tuple[Table, Table]:
    """Returns the tables of sums and of shares."""
    of_sums = [
        (
            *(TITLES[row.network], f"{row.whole:.1f}"),
            *(f"{time:.1f} ({time / row.whole:.0%})" for time in (row.layers, row.roofline)),
        )
        for row in sums
    ]
    of_shares = [
        (
            *(f"{TITLES[row.network]}: {row.kind}", f"{row.multiply_adds:.1f}"),
            *(f"{row.measured:.1f}", f"{row.of_roofline:.0f}"),
        )
        for row in of_kinds
    ]
    return Table("latency_sums", SUM_HEADER, of_sums), Table(
        "latency_layers", SHARE_HEADER, of_shares
    )
