"""Where does a training step spend its time on this device?

Traces ten training steps of a network (forward, backward, SGD with momentum, one device) and sums
the time of the kernels by kind of layer, beside the time in which this device copies as many bytes:
what is far above it does not wait for memory. The step is the one that `make h100` compiles, so
that its kernels can be compared one by one with those of runs/chips/kernels_*.csv.

Writes a table by kind, and a row of CSV for each kernel, to --out. It takes two minutes on a GPU.
"""

import collections
import dataclasses
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.common.experiment import Table, experiment_parser, run
from experiments.common.timing import times
from experiments.speed.compilers import cost
from experiments.speed.compilers.steps import TASKS, lower
from mnv2.runtime.cli import whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.machine import find_devices


class Timed(NamedTuple):
    """A kernel: its layer, the bytes that it moves, and its milliseconds per step."""

    name: str
    kind: str
    layer: str
    traffic: float
    ms: float


def copied_per_second(size: int) -> float:
    """Returns the bytes per second that a copy of `size` bytes reads and writes."""
    array = jnp.zeros(size // 4, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    copy(array).block_until_ready()
    seconds = statistics.median(times(lambda: copy(array).block_until_ready(), 1.0))
    return 2 * size / seconds


def traced(compiled: Any, arguments: Any, steps: int) -> dict[str, float]:
    """Returns the milliseconds per step of each operation of a compiled training step."""
    state, batch = arguments[:3], arguments[3:]
    with tempfile.TemporaryDirectory() as folder:
        *state, _ = compiled(*state, *batch)  # warms up
        jax.block_until_ready(state)
        with jax.profiler.trace(folder):
            for _ in range(steps):
                *state, _ = compiled(*state, *batch)
            jax.block_until_ready(state)
        (path,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
        total: dict[str, float] = collections.defaultdict(float)
        events = (event for plane in devices for line in plane.lines for event in line.events)
        for event in events:
            if operation := dict(event.stats).get("hlo_op"):
                total[str(operation)] += event.duration_ns / 1e6 / steps
    if not total:
        raise UserError(
            "the trace has no operations: JAX's profiler has changed, or is not allowed"
        )
    return total


def kernels(text: str, measured: Mapping[str, float]) -> list[Timed]:
    """Joins the operations of a program with what was measured of each, the slowest first."""
    found = []
    for one in cost.traffic(text):
        if one.name in measured:
            found.append(Timed(one.name, one.kind, one.layer, one.traffic, measured[one.name]))
    return sorted(found, key=lambda one: -one.ms)


def table_of(found: Sequence[Timed], per_second: float) -> Table:
    """Returns the sums over kinds of kernels, beside a copy of as many bytes."""
    lines = []
    for kind in [*cost.KINDS, "all"]:
        of_kind = [one for one in found if kind in (one.kind, "all")]
        if of_kind:
            ms, traffic = sum(one.ms for one in of_kind), sum(one.traffic for one in of_kind)
            copy = 1e3 * traffic / per_second
            cells = f"{ms:.2f}", f"{traffic / 1e9:.2f}", f"{copy:.2f}", f"{ms / copy:.1f}"
            lines.append((kind, f"{len(of_kind):,}", *cells))
    return Table("layers", ("kind", "kernels", "ms", "GB", "ms of a copy", "ratio"), lines)


def main() -> None:
    parser = experiment_parser(__file__, __doc__, steps=10)
    parser.add_argument("--network", choices=TASKS, default="v2")
    parser.add_argument("--batch", type=whole_number(), help="(default: as make h100)")
    arguments = parser.parse_args()
    print(f"device: {find_devices()}", flush=True)
    task = TASKS[arguments.network]
    task = dataclasses.replace(task, batch=arguments.batch or task.batch)
    here = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("device",)), PartitionSpec())
    lowered = lower(task, "mnv2", here)
    # The kernels of a CUDA graph are traced without the names of their operations.
    on_gpu = jax.default_backend() == "gpu"
    compiled = lowered.compile({"xla_gpu_enable_command_buffer": ""} if on_gpu else {})
    random = np.random.default_rng(0)
    values = jax.tree.map(
        lambda x: jax.device_put(random.random(x.shape).astype(x.dtype), here),
        lowered.args_info[0],
    )
    found = kernels(compiled.as_text(), traced(compiled, values, arguments.steps))
    largest = int(max(one.traffic for one in found) / 2)
    table_of(found, copied_per_second(largest)).write(arguments.out, found)


if __name__ == "__main__":
    run(main)
