"""How much time do checkpoints cost?

Trains the network of the ablation in one process, in blocks of ten steps. Every other block begins
with a checkpoint. A checkpoint is on the disk within three steps, so the difference between the
blocks is its whole cost, with the writing in the background: in seconds, and as a share of the time
of 100 steps. Writes checkpoints.csv to --out.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.experiment import Table, experiment_parser, run
from mnv2 import data
from mnv2.runtime.machine import keep_compiled_programs, keep_freed_memory
from mnv2.runtime.terminal import StatusLine
from mnv2.training.checkpoint import Checkpoints, Timing
from mnv2.training.config import defaults, from_config
from mnv2.training.setup import initial_state, set_up
from mnv2.training.step import shard

STEPS = 10
EVERY = 100  # steps between two checkpoints, for the relative cost


def pairs(config: Any, count: int, folder: Path) -> Iterator[dict[str, float]]:
    """Trains, and yields the seconds of each pair of blocks; writes checkpoints to a folder.

    The first pair is left out, since it includes compilation and other work that is done only once.
    """
    settings = from_config(config)
    setup = set_up(settings)
    state = initial_state(setup, settings)
    batches = data.train_batches(setup.dataset, config.batch_size, seed=0, view=setup.train_view)
    key = jax.random.key(0)
    checkpoints = Checkpoints(folder)
    for pair in range(count + 1):
        seconds = {}
        for block in ("saved", "plain"):
            began = time.perf_counter()
            if block == "saved":
                checkpoints.save(2 * pair * STEPS, state, Timing())
            for _ in range(STEPS):
                state, _ = setup.steps.train(state, shard(next(batches)), key, None)
            jax.block_until_ready(state)
            checkpoints.wait()
            seconds[block] = time.perf_counter() - began
        if pair:
            yield seconds
    checkpoints.close()


def table(measured: Sequence[dict[str, float]], batch_size: int) -> Table:
    with_, without = np.array([list(pair.values()) for pair in measured]).T
    steps = float(np.median(without))
    between = steps * EVERY / STEPS
    # The machine's speed varies slowly, so neighbouring blocks are compared. The median leaves out
    # stalls of the machine, which are not a cost of checkpoints.
    extra = with_ - without
    draws = np.median(np.random.default_rng(0).choice(extra, (2000, len(extra))), axis=1)
    low, high = 100 * np.percentile(draws, (2.5, 97.5)) / between
    median = float(np.median(extra))
    cost, rate = median / between, EVERY * batch_size / between
    columns = {
        f"{STEPS} steps, ms": f"{1000 * steps:.0f}",
        "with a checkpoint, ms": f"{1000 * (steps + median):.0f}",
        "images/s, no checkpoints": f"{rate:,.0f}",
        f"images/s, every {EVERY} steps": f"{rate / (1 + cost):,.0f}",
        "cost, %": f"{100 * cost:.1f}",
        "95 % interval": f"{low:.1f} to {high:.1f}",
    }
    return Table("checkpoints", list(columns), [list(columns.values())])


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, pairs=80).parse_args()
    keep_compiled_programs()
    config = defaults()
    config.ema_decay = 0.999  # a third copy of the parameters in each checkpoint
    measured, line = [], StatusLine("checkpoints")
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs(config, arguments.pairs, Path(folder)):
            measured.append(pair)
            line.say(f"{len(measured)}/{arguments.pairs} pairs of {STEPS} steps")
    line.clear()
    table(measured, config.batch_size).write(arguments.out, measured)


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
