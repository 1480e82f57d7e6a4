"""How fast is this machine's device?

Times training steps and inference of V1, V2 and ResNet-50 on JAX's default device (GPU, TPU or
CPU), in float32 and bfloat16: in mnv2, in plain Flax and, where it is installed and has the device,
in PyTorch with channels last, eager and compiled. On a GPU all of them multiply float32 as TF32.

Prints images/s (the median of the steps, and the range of their middle 90 %) and the ratio to plain
Flax. A row that does not fit the memory is left out. All rows take about 25 minutes; the options
choose some.

Writes device.csv and device.md to --out, with the device, the versions and the commit in each row
of the CSV. Rows of devices that docs/accelerators.md lacks are welcome.
"""

import contextlib
import gc
import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from experiments.common.experiment import Table, experiment_parser, run, tried, write_csv
from experiments.common.timing import times
from experiments.speed.frameworks.steps import CONTENDERS, installed
from experiments.speed.frameworks.tasks import NETWORKS, Task
from experiments.speed.frameworks.turns import rounded
from mnv2.runtime import machine
from mnv2.runtime.cli import whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.machine import describe_devices, find_devices
from mnv2.runtime.terminal import warn
from mnv2.sweeps.workdir import commit

MODES = ("train", "infer")
DTYPES = ("float32", "bfloat16")
FRAMEWORKS = ("mnv2", "Flax", "PyTorch", "torch.compile")
OF_JAX = FRAMEWORKS[:2]
OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory")


class Row(NamedTuple):
    """The speed of one network in one framework."""

    task: Task
    framework: str
    images_per_second: float
    lowest: float
    highest: float

    def __str__(self) -> str:
        task, speeds = self.task, (self.images_per_second, self.lowest, self.highest)
        median, low, high = map(rounded, speeds)
        what = f"{task.mode:5}  {NETWORKS[task.network]:9}  {task.dtype:8}  {self.framework:13}"
        return f"{what}  {median} images/s ({low}-{high})"

    def record(self) -> dict[str, Any]:
        """Returns the columns of the CSV, with the device, the versions and the commit."""
        task, of_jax = self.task, f"jax {jax.__version__}, jaxlib {jaxlib.__version__}"
        return {
            "device": describe_devices(device.device_kind for device in jax.devices()),
            **{"mode": task.mode, "network": task.network, "dtype": task.dtype},
            **{"pixels": task.size, "batch": task.batch},
            **dict(list(self._asdict().items())[1:]),
            "versions": of_jax if self.framework in OF_JAX else f"torch {version('torch')}",
            "commit": commit() or "unknown",
        }


def measure(framework: str, task: Task, seconds: float) -> Row:
    """Times one network for `seconds`, after its first two steps. Raises what JAX raises."""
    step = CONTENDERS[framework].make_step(task)
    for _ in range(2):
        step()
    speeds = task.batch / np.array(list(times(step, seconds)))
    low, median, high = (float(np.quantile(speeds, q)) for q in (0.05, 0.5, 0.95))
    return Row(task, framework, median, low, high)


def measure_or_free(name: str, framework: str, task: Task, seconds: float) -> Row:
    """Measures, and frees all memory. Raises UserError if `name` does not fit the device's."""
    row = None
    try:
        row = measure(framework, task, seconds)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
    finally:  # the next network would not get the memory otherwise, which an error would hold
        jax.clear_caches()
        gc.collect()
        torch = sys.modules.get("torch")  # if a row of PyTorch was measured
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if row is None:
        raise UserError(f"{name} does not fit the memory")
    return row


def table_of(measured: Sequence[Row]) -> Table:
    """Returns a line per network, mode and type, with a column per framework."""
    names = [name for name in FRAMEWORKS if any(row.framework == name for row in measured)]
    lines = []
    for task in dict.fromkeys(row.task for row in measured):
        speeds = {row.framework: row.images_per_second for row in measured if row.task == task}
        ratio = f"{speeds['mnv2'] / speeds['Flax']:.2f}" if {*OF_JAX} <= {*speeds} else ""
        network = f"{task.mode} {NETWORKS[task.network]}"
        what = f"{network}, {task.dtype}, {task.size} px, batch {task.batch}"
        cells = (rounded(speeds[name]) if name in speeds else "" for name in names)
        lines.append([what, *cells, ratio])
    return Table("device", ["images/s", *names, "mnv2 to Flax"], lines)


def main() -> None:
    # PyTorch could not have what JAX reserves. Nothing here allocates in its measured steps.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    parser = experiment_parser(__file__, __doc__, seconds=5.0, size=224)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--only", nargs="+", choices=FRAMEWORKS, default=FRAMEWORKS)
    parser.add_argument("--batch", type=whole_number(), help="default: 256, on a CPU 32")
    arguments = parser.parse_args()
    print(f"device: {find_devices()}", flush=True)
    batch = arguments.batch or (32 if jax.default_backend() == "cpu" else 256)
    if batch % (count := jax.device_count()):
        raise UserError(f"--batch must be a multiple of the {count} devices, got {batch}")
    frameworks, threads = _usable(arguments.only), machine.threads()
    tasks = [
        Task(mode, network, size=arguments.size, batch=batch, threads=threads, dtype=dtype)
        for mode, network, dtype in itertools.product(
            arguments.modes, arguments.networks, arguments.dtypes
        )
    ]
    attempts = {}
    for task, framework in itertools.product(tasks, frameworks):
        name = f"{task}, {task.dtype}, {framework}"
        attempts[name] = partial(measure_or_free, name, framework, task, arguments.seconds)
    measured: list[Row] = []
    for row in tried("measuring", attempts):
        measured.append(row)
        print(row, flush=True)
        write_csv([one.record() for one in measured], arguments.out / "device.csv")
    if not measured:
        raise UserError("no network fits the memory: give a smaller --batch")
    table_of(measured).write(arguments.out)
    print(f"\nin {arguments.out}: device.csv, device.md")


def _usable(names: Sequence[str]) -> list[str]:
    """Returns the frameworks that are installed and have the device, and says which do not."""
    found = installed(names)
    with contextlib.suppress(ImportError):
        importlib.import_module("triton")  # the process would crash if TensorFlow came first
    if jax.default_backend() == "cpu" or not set(found) - set(OF_JAX):
        return found
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return found
    warn("PyTorch is left out: it has no GPU here")
    return [name for name in found if name in OF_JAX]


if __name__ == "__main__":
    run(main)
