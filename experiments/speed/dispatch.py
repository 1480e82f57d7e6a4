"""What does it cost to call the devices for every training step?

Trains a network that is too small to hide the cost of a call (width 0.1, 8 pixels, batch 16), and
the network of the ablation. A batch comes from the host with each step, or is looked up on the
device, with 1, 10 or 100 steps per call. The ways take turns, 100 steps each. Prints steps/s, as
median and range over --rounds.
"""

import itertools
import statistics
from typing import Any

import jax
import numpy as np

from experiments.common.experiment import Table, experiment_parser, run
from experiments.common.timing import Step, in_turns
from experiments.speed.frameworks.our_steps import begun
from mnv2 import data
from mnv2.models import create_model
from mnv2.runtime.machine import keep_compiled_programs, keep_freed_memory, threads
from mnv2.training.config import MODEL
from mnv2.training.feed import stack
from mnv2.training.step import replicate, shard

STEPS = 100  # of one measurement
EXAMPLES = 1000
PER_CALL = (0, 1, 10, 100)  # steps; 0: the batches come from the host
TASKS = (("tiny", 0.1, 8, 16), ("the ablation's", 0.35, 28, 128))  # width, pixels, batch


def training(width: float, pixels: int, batch_size: int, per_call: int) -> Step:
    """Returns what trains for STEPS steps, with `per_call` of them in a call of the devices."""
    fields: dict[str, Any] = {**MODEL, "width": width}
    model = create_model(**fields, num_classes=10)
    shape = (pixels, pixels, 1)
    steps, state = begun(model, shape, batch_size, EXAMPLES)
    random, key = np.random.default_rng(0), jax.random.key(0)
    images = random.integers(0, 256, (EXAMPLES, *shape)).astype(np.uint8)
    labels = random.integers(0, 10, EXAMPLES).astype(np.int32)
    on_device = replicate(images), replicate(labels)
    batches = map(data.Order(EXAMPLES, batch_size, seed=0).rows_at, itertools.count())

    def train() -> None:
        nonlocal state
        for _ in range(STEPS // max(1, per_call)):
            if per_call:
                rows = stack([next(batches) for _ in range(per_call)])
                state, _ = steps.train_many(state, *on_device, rows, per_call, key, None)
            else:
                rows = next(batches)
                index = rows["index"]
                batch = {"image": images[index], "label": labels[index], **rows}
                state, _ = steps.train(state, shard(batch), key, None)
        jax.block_until_ready(state)

    return train


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, rounds=5).parse_args()
    keep_compiled_programs()
    lines = []
    for title, width, pixels, batch in TASKS:
        steps = {per_call: training(width, pixels, batch, per_call) for per_call in PER_CALL}
        cells = [f"{title}, width {width:g}, {pixels} px, batch {batch}"]
        for seconds in in_turns(steps, arguments.rounds, 0, title).values():
            rates = [STEPS / each for each in seconds]
            cells.append(
                f"{statistics.median(rates):,.1f} ({min(rates):,.1f} to {max(rates):,.1f})"
            )
        lines.append(cells)
    header = ["steps/s", "from the host", *(f"{count} per call" for count in PER_CALL[1:])]
    Table("dispatch", header, lines).write(arguments.out)
    print(f"on {jax.device_count()} x {jax.devices()[0].device_kind}, {threads()} threads")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
