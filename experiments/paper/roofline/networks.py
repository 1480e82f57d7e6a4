"""The time of whole networks per image."""

import itertools
import multiprocessing
import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.initialisation import random_network
from experiments.common.table import Table
from experiments.common.timing import Step, in_turns
from experiments.paper.roofline.machines import SIZE
from mnv2.models import for_inference
from mnv2.runtime.terminal import StatusLine

NETWORKS = (
    ("mobilenet_v1", 1.0),
    ("mobilenet_v2", 0.5),
    ("mobilenet_v2", 1.0),
    ("mobilenet_v2", 1.4),
    ("resnet50", 1.0),
)
BATCHES = (1, 32)
TITLES = {"mobilenet_v1": "V1", "mobilenet_v2": "V2", "resnet50": "ResNet-50"}


class Timed(NamedTuple):
    """The milliseconds per image of a network: the median of the rounds, and their range."""

    network: str
    width: float
    batch: int
    threads: int
    folded: bool  # batch norm is part of the convolutions
    median: float
    lowest: float
    highest: float


def whole_network(name: str, width: float, batch: int, folded: bool) -> Step:
    """Compiles the inference of a network on `batch` images, with batch norm folded or not."""
    model, variables = random_network(name, width=width)
    shape = (batch, SIZE, SIZE, 3)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    if folded:
        apply = for_inference(model, variables)
    else:
        apply = jax.jit(lambda x: model.apply(variables, x, train=False))
    return lambda: jax.block_until_ready(apply(x))


def time_networks(threads: int, rounds: int, seconds: float) -> list[Timed]:
    """Times NETWORKS in turns, with each of BATCHES, in a new process with `threads` threads.

    With all of the machine's threads, batch norm is also timed as an operation of its own.
    """
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as process:
        return process.submit(_time_networks, threads, rounds, seconds).result()


def _time_networks(threads: int, rounds: int, seconds: float) -> list[Timed]:
    all_cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, all_cores[:threads])  # XLA takes its number of threads from this
    line = StatusLine(f"{threads} threads")
    foldings = (True, False) if threads == len(all_cores) else (True,)
    steps: dict[tuple[str, float, int, bool], Step] = {}
    for (name, width), batch, folded in itertools.product(NETWORKS, BATCHES, foldings):
        line.say(f"compiling {name} {width:g}, batch {batch}")
        steps[name, width, batch, folded] = whole_network(name, width, batch, folded)
    medians = in_turns(steps, rounds, seconds, line.say)
    line.clear()
    rows = []
    for (name, width, batch, folded), times in medians.items():
        each = [1000 * time / batch for time in times]
        summary = (statistics.median(each), min(each), max(each))
        rows.append(Timed(name, width, batch, threads, folded, *summary))
    return rows


def table(rows: Sequence[Timed]) -> Table:
    """Returns the networks' times: the median of the rounds, and their range."""
    lines = [
        (
            *(f"{TITLES[row.network]} {row.width:g}", row.batch, row.threads),
            "folded" if row.folded else "not folded",
            f"{row.median:.2f} ({row.lowest:.2f}-{row.highest:.2f})",
        )
        for row in rows
    ]
    header = ("network", "batch", "threads", "batch norm", "ms per image")
    return Table("latency_networks", header, lines)
