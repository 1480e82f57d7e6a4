"""What do checkpoints cost? python -m experiments.checkpoints

Trains the ablation's network as the ablation does, ten steps that begin with a checkpoint and ten
without in turn, in one process. A checkpoint is on the disk within three steps, so that the
difference is all that it costs, writing in the background included: in seconds, and in parts of
100 steps. Writes checkpoints.csv to --output.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import v2_ablation
from experiments.tables import write_csv, write_markdown
from mnv2 import data
from mnv2.runtime import compilation_cache
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.runtime.throughput import Progress
from mnv2.training.checkpoint import Checkpoints
from mnv2.training.setup import build
from mnv2.training.state import create_state

STEPS = 10
EVERY = 100  # steps from a checkpoint to the next, for the cost in parts


class Block(NamedTuple):
    """The seconds of STEPS steps, after a save or without one."""

    saved: bool
    seconds: float


def blocks(config: Any, pairs: int, folder: Path) -> Iterator[Block]:
    """Trains, and times each block; the first pair, with what is done only once, is left out."""
    parts = build(config)
    on_devices, shape = parts.on_devices, parts.image_shape
    state = create_state(parts.model, on_devices.optimizer, shape, seed=0, ema=True)
    state = on_devices.place(state)
    batches = data.train_batches(parts.dataset, config.batch_size, seed=0, size=shape[:2])
    key = jax.random.key(0)
    checkpoints = Checkpoints(folder)
    for block in range(2 * pairs + 2):
        saves = block % 2 == 0
        began = time.perf_counter()
        if saves:
            checkpoints.save(block * STEPS, state, 0.0)
        for _ in range(STEPS):
            state, _ = on_devices.train(state, on_devices.shard(next(batches)), key)
        jax.block_until_ready(state)
        checkpoints.wait()
        if block >= 2:
            yield Block(saves, time.perf_counter() - began)
    checkpoints.close()


def main() -> None:
    parser = command_parser("experiments.checkpoints", __doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/checkpoints"))
    parser.add_argument("--pairs", type=int, default=80)
    arguments = parser.parse_args()
    compilation_cache.remember()
    config = v2_ablation.get_config()
    config.ema_decay = 0.999  # a third copy of the parameters to be saved
    measured: list[Block] = []
    progress = Progress("checkpoints", 2 * arguments.pairs, 1)
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(config, arguments.pairs, Path(folder)):
            measured.append(block)
            progress.say(f"{len(measured)}/{2 * arguments.pairs} times {STEPS} steps")
    progress.clear()
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(measured, arguments.output / "checkpoints.csv")
    header = (f"{STEPS} steps, ms", "with a checkpoint, ms", "images/s, none",
              f"images/s, every {EVERY} steps", "cost, %", "95 % interval")  # fmt: skip
    write_markdown(arguments.output, "checkpoints", header, [row(measured, config.batch_size)])
    print((arguments.output / "checkpoints.md").read_text())


def row(measured: list[Block], batch_size: int) -> tuple[str, ...]:
    """Medians, and the cost of a checkpoint every so many steps with its interval."""
    with_, without = (
        np.array([block.seconds for block in measured if block.saved == saved])
        for saved in (True, False)
    )
    steps = float(np.median(without))
    between = steps * EVERY / STEPS
    # Neighbours share the machine's mood; a stall of the machine is no cost of a checkpoint.
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
    restart_with_huge_pages("experiments.checkpoints")
    run(main)
