"""How much time do checkpoints cost?

Trains the network of the ablation in one process, in blocks of ten steps. Every other block begins
with a checkpoint. A checkpoint is on the disk within three steps, so the difference between the
blocks is its whole cost, with the writing in the background: in seconds, and as a share of the time
of 100 steps. Writes checkpoints.csv to --out.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import v2_ablation
from experiments.common.table import Table
from mnv2 import data
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.machine import keep_compiled_programs, keep_freed_memory
from mnv2.runtime.terminal import StatusLine
from mnv2.sweeps.plan import with_arms
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.config import from_config
from mnv2.training.setup import initial_state, set_up
from mnv2.training.step import shard

STEPS = 10
EVERY = 100  # steps between two checkpoints, for the relative cost


class Block(NamedTuple):
    """The seconds of STEPS steps, with a checkpoint before them or without."""

    saved: bool
    seconds: float


def blocks(config: Any, pairs: int, folder: Path) -> Iterator[Block]:
    """Trains, and yields the time of each block, with and without a checkpoint in turn.

    The first pair is left out, since it includes compilation and other work that is done only once.

    Args:
        config: The config of the run.
        pairs: The number of pairs of blocks.
        folder: The folder for checkpoints.
    """
    settings = from_config(config)
    setup = set_up(settings)
    steps, state = setup.steps, initial_state(setup, settings)
    view = setup.views[0]
    batches = data.train_batches(setup.dataset, config.batch_size, seed=0, view=view)
    key = jax.random.key(0)
    checkpoints = Checkpoints(folder)
    for block in range(2 * pairs + 2):
        saves = block % 2 == 0
        began = time.perf_counter()
        if saves:
            checkpoints.save(block * STEPS, state, Timing())
        for _ in range(STEPS):
            state, _ = steps.train(state, shard(next(batches)), key, None)
        jax.block_until_ready(state)
        checkpoints.wait()
        if block >= 2:
            yield Block(saves, time.perf_counter() - began)
    checkpoints.close()


def main() -> None:
    parser = command_parser("experiments.speed.checkpoints", __doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/checkpoints"))
    parser.add_argument("--pairs", type=whole_number(), default=80)
    arguments = parser.parse_args()
    keep_compiled_programs()
    config = with_arms(v2_ablation.get_config())
    config.ema_decay = 0.999  # a third copy of the parameters in each checkpoint
    measured: list[Block] = []
    line = StatusLine("checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(config, arguments.pairs, Path(folder)):
            measured.append(block)
            line.say(f"{len(measured)}/{2 * arguments.pairs} times {STEPS} steps")
    line.clear()
    header = (
        f"{STEPS} steps, ms",
        "with a checkpoint, ms",
        "images/s, no checkpoints",
        f"images/s, every {EVERY} steps",
        "cost, %",
        "95 % interval",
    )
    lines = [row(measured, config.batch_size)]
    Table("checkpoints", header, lines).write(arguments.out, measured)


def row(measured: list[Block], batch_size: int) -> tuple[str, ...]:
    """Returns the row of the table: medians, and the cost of checkpoints with its interval."""
    with_, without = (
        np.array([block.seconds for block in measured if block.saved == saved])
        for saved in (True, False)
    )
    steps = float(np.median(without))
    between = steps * EVERY / STEPS
    # The machine's speed varies slowly, so neighbouring blocks are compared. The median leaves out
    # stalls of the machine, which are not a cost of checkpoints.
    extra = with_ - without
    draws = np.random.default_rng(0).choice(extra, (2000, len(extra)))
    costs = 100 * np.percentile(np.median(draws, axis=1), (2.5, 97.5)) / between
    cost = float(np.median(extra)) / between
    rate = EVERY * batch_size / between
    return (
        f"{1000 * steps:.0f}",
        f"{1000 * (steps + float(np.median(extra))):.0f}",
        f"{rate:,.0f}",
        f"{rate / (1 + cost):,.0f}",
        f"{100 * cost:.1f}",
        f"{costs[0]:.1f} to {costs[1]:.1f}",
    )


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
