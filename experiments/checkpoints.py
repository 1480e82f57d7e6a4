"""What do checkpoints cost? python -m experiments.checkpoints

Trains the ablation's network as the ablation does, 100 steps with a checkpoint and 100 without in
turn, in one process: the wall clock from a save to the next, writing in the background included.
Writes checkpoints.csv to --output and prints the medians and their ratio.
"""

import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from configs import v2_ablation
from experiments.tables import write_csv, write_markdown
from mnv2 import compiled, data
from mnv2.allocator import restart_with_huge_pages
from mnv2.build import build
from mnv2.checkpoint import Checkpoints
from mnv2.commands import command_parser, run
from mnv2.progress import Progress
from mnv2.state import create_state


class Block(NamedTuple):
    """So many steps, after a save or without one."""

    saved: bool
    images_per_second: float


def blocks(config: Any, steps: int, pairs: int, folder: Path) -> Iterator[Block]:
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
            checkpoints.save(block * steps, state, 0.0)
        for _ in range(steps):
            state, _ = on_devices.train(state, on_devices.shard(next(batches)), key)
        jax.block_until_ready(state)
        checkpoints.wait()
        if block >= 2:
            yield Block(saves, steps * config.batch_size / (time.perf_counter() - began))
    checkpoints.close()


def main() -> None:
    parser = command_parser("experiments.checkpoints", __doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/checkpoints"))
    parser.add_argument("--steps", type=int, default=100, help="from a checkpoint to the next")
    parser.add_argument("--pairs", type=int, default=10)
    arguments = parser.parse_args()
    compiled.remember()
    config = v2_ablation.get_config()
    config.ema_decay = 0.999  # a third copy of the parameters to be saved
    measured: list[Block] = []
    progress = Progress("checkpoints", 2 * arguments.pairs, 1)
    with tempfile.TemporaryDirectory() as folder:
        for block in blocks(config, arguments.steps, arguments.pairs, Path(folder)):
            measured.append(block)
            progress.say(f"{len(measured)}/{2 * arguments.pairs} blocks of {arguments.steps} steps")
    progress.clear()
    rates = {
        saved: [block.images_per_second for block in measured if block.saved == saved]
        for saved in (True, False)
    }
    # Neighbours share the machine's mood.
    costs = [1 - with_ / without for with_, without in zip(rates[True], rates[False], strict=True)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(measured, arguments.output / "checkpoints.csv")
    row = [
        *(f"{statistics.median(rates[saved]):,.0f}" for saved in (False, True)),
        f"{100 * statistics.median(costs):.1f}",
        f"{100 * min(costs):.1f} to {100 * max(costs):.1f}",
    ]
    header = ["without, images/s", f"every {arguments.steps} steps, images/s",
              "cost of a pair, %, median", "from, to"]  # fmt: skip
    write_markdown(arguments.output, "checkpoints", header, [row])
    print((arguments.output / "checkpoints.md").read_text())


if __name__ == "__main__":
    restart_with_huge_pages("experiments.checkpoints")
    run(main)
