"""What does it cost to call the devices for every training step? python -m experiments.dispatch

Trains a network that is too small to hide the cost of a call (width 0.1, 8 pixels, batch 16), and
the network of the ablation. A batch comes from the host with each step, or is looked up on the
device, with 1, 10 or 100 steps per call. Then with as many steps per call as possible for several
runs, of different seeds, in one program: see --runs_per_device of mnv2.main. The ways take turns,
100 steps each, of all runs together. Prints and writes these steps/s, as median and range over
--rounds, to --out as dispatch.csv, dispatch.md and together.md.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import v2_ablation
from experiments.common.writers import write_csv, write_markdown
from mnv2 import data
from mnv2.models import create_model
from mnv2.pretrained import Preprocessing
from mnv2.runtime import compilation_cache, machine
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.runtime.terminal import StatusLine
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.training import settings
from mnv2.training.feed import stack
from mnv2.training.state import TrainState, create_state
from mnv2.training.steps import create_steps

STEPS = 100  # of one measurement
EXAMPLES = 1000


class Way(NamedTuple):
    """How the devices are called; `per_call` is 0 if the batches come from the host."""

    per_call: int
    together: int = 1


CALLS = (Way(0), Way(1), Way(10), Way(100))
SHARED = (Way(100), Way(50, 2), Way(25, 4), Way(12, 8))  # 100 steps of all runs, or almost


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and its batches."""

    title: str
    width: float
    pixels: int
    batch: int

    def __str__(self) -> str:
        return f"{self.title}, width {self.width:g}, {self.pixels} px, batch {self.batch}"


TASKS = (Task("tiny", 0.1, 8, 16), Task("the ablation's", 0.35, 28, 128))


class Measured(NamedTuple):
    """Steps per second of one round, of all runs together."""

    network: str
    per_call: int
    together: int
    round: int
    steps_per_second: float

    @property
    def way(self) -> Way:
        return Way(self.per_call, self.together)


def ways(task: Task) -> dict[Way, Callable[[], float]]:
    """Returns what measures steps per second, by the way."""
    config = with_arms(v2_ablation.get_config())
    config.batch_size = task.batch
    of_run = settings.from_config(resolve(config, "linear"))
    fields = {**of_run.model, "width": task.width}
    model = create_model(fields.pop("name"), num_classes=10, **fields)
    steps = create_steps(model, of_run, Preprocessing(), total_steps=10_000, examples=EXAMPLES)
    random, key = np.random.default_rng(0), jax.random.key(0)
    shape = (task.pixels, task.pixels, 1)
    images = random.integers(0, 256, (EXAMPLES, *shape)).astype(np.uint8)
    labels = random.integers(0, 10, EXAMPLES).astype(np.int32)
    on_device = steps.place(images), steps.place(labels)
    batches = data.train_rows(EXAMPLES, task.batch, seed=0)
    rate = np.float32(of_run.optimization.learning_rate)
    states: dict[Way, tuple[TrainState, ...]] = {}

    def states_of(way: Way) -> tuple[TrainState, ...]:
        if way not in states:
            states[way] = tuple(
                steps.place(create_state(model, steps.optimizer, shape, seed=seed, ema=False))
                for seed in range(way.together)
            )
        return jax.block_until_ready(states[way])

    def rows(count: int) -> data.Rows:
        return stack([next(batches) for _ in range(count)], steps.shard)

    def from_host(state: TrainState) -> tuple[TrainState, ...]:
        for _ in range(STEPS):
            index = next(batches)["index"]
            batch = {"image": images[index], "label": labels[index]}
            state, _ = steps.train(state, steps.shard(batch), key)
        return (state,)

    def looked_up(state: TrainState, per_call: int) -> tuple[TrainState, ...]:
        for _ in range(STEPS // per_call):
            state, _ = steps.train_many(state, *on_device, rows(per_call), per_call, key)
        return (state,)

    def together(those: tuple[TrainState, ...], per_call: int) -> tuple[TrainState, ...]:
        theirs = tuple(rows(per_call) for _ in those)
        keys, rates = (key,) * len(those), (rate,) * len(those)
        results = steps.train_together(those, *on_device, theirs, per_call, keys, rates)
        return tuple(state for state, _ in results)

    def timed(way: Way) -> float:
        those = states_of(way)
        began = time.perf_counter()
        if way.together > 1:
            those = together(those, way.per_call)
        else:
            (state,) = those
            those = looked_up(state, way.per_call) if way.per_call else from_host(state)
        states[way] = jax.block_until_ready(those)
        count = way.per_call * way.together if way.together > 1 else STEPS
        return count / (time.perf_counter() - began)

    return {way: functools.partial(timed, way) for way in dict.fromkeys((*CALLS, *SHARED))}


def row(task: Task, measured: Sequence[Measured], ways: Sequence[Way]) -> list[str]:
    """Returns the row of a table: the median and the range of each of `ways`."""
    cells = []
    for way in ways:
        values = [one.steps_per_second for one in measured if one.way == way]
        cells.append(f"{statistics.median(values):,.1f} ({min(values):,.1f} to {max(values):,.1f})")
    return [str(task), *cells]


def main() -> None:
    parser = command_parser("experiments.dispatch", __doc__)
    parser.add_argument("--rounds", type=whole_number(), default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/dispatch"))
    arguments = parser.parse_args()
    compilation_cache.enable()
    line = StatusLine("dispatch")
    everything: list[Any] = []
    for_calls, for_together = [], []
    for task in TASKS:
        measured: list[Measured] = []
        timed = ways(task)
        for number in range(arguments.rounds + 1):  # the first one compiles
            for way, measure in timed.items():
                line.say(f"{task}: round {number} of {arguments.rounds}")
                rate = measure()
                if number:
                    measured.append(Measured(str(task), *way, number, rate))
        everything += measured
        for_calls.append(row(task, measured, CALLS))
        for_together.append(row(task, measured, SHARED))
    line.clear()
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(everything, arguments.out / "dispatch.csv")
    calls = ["steps/s", "from the host", *(f"{way.per_call} per call" for way in CALLS[1:])]
    runs = ["steps/s of all runs", *(f"{way.together} in one program" for way in SHARED)]
    for name, header, lines in (("dispatch", calls, for_calls), ("together", runs, for_together)):
        write_markdown(arguments.out, name, header, lines)
        print((arguments.out / f"{name}.md").read_text())
    kind = jax.devices()[0].device_kind
    print(f"on {jax.device_count()} x {kind}, {machine.threads()} threads")


if __name__ == "__main__":
    restart_with_huge_pages()
    run(main)
