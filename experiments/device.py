"""How fast is this machine's device? python -m experiments.device

Times training steps and inference of a few networks on JAX's default device (GPU, TPU or CPU), in
float32 and bfloat16. Prints images/s (the median of the steps, and the range of their middle 90 %),
the time until the first step is compiled, and the device's peak memory where it is known. A row
that does not fit the memory is left out. It takes less than 8 minutes.

Writes device.csv to --out, with the device, the versions and the commit in each row. Rows of
devices that docs/accelerators.md lacks are welcome.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jaxlib
import numpy as np

from experiments.common import our_steps
from experiments.common.timing import Step, times
from experiments.common.writers import write_csv
from mnv2.runtime.accelerators import describe, find_devices
from mnv2.runtime.cli import command_parser, real_number, run, whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import StatusLine, warn
from mnv2.sweeps.environment import commit

NETWORKS = ("mobilenet_v2", "mobilenet_v1", "resnet50")
DTYPES = ("float32", "bfloat16")
OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"


class Row(NamedTuple):
    """The speed of one network; `peak_mib` is 0 where JAX does not know it."""

    device: str
    mode: str
    network: str
    dtype: str
    pixels: int
    batch: int
    images_per_second: float
    lowest: float
    highest: float
    compile_seconds: float
    peak_mib: int
    jax: str
    jaxlib: str
    commit: str


def measure(mode: str, network: str, dtype: str, size: int, batch: int, seconds: float) -> Row:
    """Times one network for `seconds`, after its first two steps. Raises what JAX raises."""
    began = time.perf_counter()
    step = _step(mode, network, dtype, size, batch)
    step()
    compiled = time.perf_counter() - began
    step()
    speeds = batch / np.array(list(times(step, seconds)))
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    return Row(
        device=describe(device.device_kind for device in jax.devices()),
        mode=mode,
        network=network,
        dtype=dtype,
        pixels=size,
        batch=batch,
        images_per_second=float(np.median(speeds)),
        lowest=float(np.quantile(speeds, 0.05)),
        highest=float(np.quantile(speeds, 0.95)),
        compile_seconds=compiled,
        peak_mib=memory // 2**20,
        jax=jax.__version__,
        jaxlib=jaxlib.__version__,
        commit=commit() or "unknown",
    )


def _step(mode: str, network: str, dtype: str, size: int, batch: int) -> Step:
    strides = "imagenet" if size >= 96 else "small"
    fields = {"name": network, "dtype": dtype, "strides": strides}
    pictures = our_steps.random_batch(batch, size)
    if mode == "infer":
        return our_steps.inference(fields, pictures["image"] / np.float32(127.5) - 1)
    return our_steps.training(fields, pictures, None)


def rows(size: int, batch: int, seconds: float) -> Iterator[Row]:
    """Yields the rows as they are measured; says which do not fit the device's memory."""
    line = StatusLine("measuring")
    for mode in ("train", "infer"):
        for network in NETWORKS:
            for dtype in DTYPES:
                line.say(f"{mode} {network} {dtype}")
                try:
                    row = measure(mode, network, dtype, size, batch, seconds)
                except jax.errors.JaxRuntimeError as error:
                    if OUT_OF_MEMORY not in str(error):
                        raise
                    line.clear()
                    warn(f"{mode} {network} {dtype} with batch {batch} does not fit the memory")
                    continue
                line.clear()
                yield row
                jax.clear_caches()  # or the next network would not get the memory


def main() -> None:
    parser = command_parser("experiments.device", __doc__)
    parser.add_argument("--size", type=whole_number(), default=224, help="image side, in pixels")
    parser.add_argument("--batch", type=whole_number(), help="default: 256, on a CPU 32")
    parser.add_argument("--seconds", type=real_number(), default=10.0, help="for each row")
    parser.add_argument("--out", type=Path, default=Path("runs/device"))
    arguments = parser.parse_args()
    print(f"device: {find_devices()}", flush=True)
    batch = arguments.batch or (32 if jax.default_backend() == "cpu" else 256)
    if batch % (count := jax.device_count()):
        raise UserError(f"--batch must be a multiple of the {count} devices, got {batch}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    measured: list[Row] = []
    for row in rows(arguments.size, batch, arguments.seconds):
        measured.append(row)
        speed = f"{row.images_per_second:,.1f} images/s ({row.lowest:,.1f}-{row.highest:,.1f})"
        memory = f"  {row.peak_mib:,} MiB" if row.peak_mib else ""
        what = f"{row.mode:5}  {row.network:12}  {row.dtype:8}  {row.pixels} px, batch {row.batch}"
        print(f"{what}  {speed}  compiled in {row.compile_seconds:.0f} s{memory}", flush=True)
        write_csv(measured, arguments.out / "device.csv")
    if not measured:
        raise UserError("no network fits the memory: give a smaller --batch")
    print(f"written: {arguments.out}/device.csv")


if __name__ == "__main__":
    run(main)
