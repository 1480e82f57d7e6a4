"""Which choices of algorithms, and which of XLA's flags, train fastest on this GPU?

On a GPU XLA times several algorithms for each convolution and matrix product of a new program, and
takes the fastest. Two that are nearly as fast are chosen by chance: one program can be a third
slower than another, and differ from it in the last bits. JAX keeps the choices in the folder of its
compiled programs, and reads them there whenever a program has the same operation.

This tunes the training step of a network three times, each time in an empty folder, then once with
each flag in FLAGS. With --keep the choices of the fastest draw are copied to where `mnv2.main`
reads them: its later runs on such a device have the same speed and the same bits. It takes a minute
for each row. Writes images/s, with the range of their middle 90 %, to --out.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.common.experiment import Table, experiment_parser, run, tried
from experiments.speed.frameworks.tasks import NETWORKS
from mnv2.runtime.errors import UserError
from mnv2.runtime.machine import keep_compiled_programs

CHOICES = "xla_gpu_per_fusion_autotune_cache_dir"  # where JAX keeps them, in its cache's folder
# Those of XLA that may help a network of depthwise convolutions.
FLAGS = (
    "xla_gpu_triton_gemm_any=true",
    "xla_gpu_force_conv_nhwc=true",
    "xla_gpu_cudnn_gemm_fusion_level=2",
    "xla_gpu_experimental_enable_conv_fusion=true",
    "xla_gpu_experimental_enable_fusion_autotuner=true",
    "xla_gpu_enable_command_buffer=",
    "xla_disable_hlo_passes=multi_output_fusion",
    "xla_gpu_deterministic_ops=true",
)


def measure(setting: str, flag: str, options: Sequence[str], folder: Path) -> dict[str, Any]:
    """Compiles and times the step in a process of its own, with a folder for what JAX keeps.

    Returns the images/s of a draw, or with a flag: median and range of the steps. Raises UserError
    if the process fails.
    """
    changed = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    if flag:
        changed["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{flag}"
    command = [sys.executable, "-m", "experiments.speed.device", "--only", "mnv2", "--modes"]
    done = subprocess.run(
        [*command, "train", *options, "--out", str(folder)],
        env={**os.environ, **changed}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"{setting} cannot be measured: {said[-1][:200]}")
    with (folder / "device.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    speeds = {name: float(row[name]) for name in ("images_per_second", "lowest", "highest")}
    return {"device": row["device"], "setting": setting, **speeds}


def keep(folder: Path) -> None:
    """Copies the choices of a draw to the folder in which `mnv2.main` reads them."""
    keep_compiled_programs()
    chosen = jax.config.jax_compilation_cache_dir
    if chosen is None or not (folder / "compiled" / CHOICES).is_dir():
        raise UserError("no choices were kept: only a GPU has them")
    shutil.copytree(folder / "compiled" / CHOICES, Path(chosen) / CHOICES, dirs_exist_ok=True)
    print(f"\nthe choices of the fastest draw are in {Path(chosen) / CHOICES}")


def main() -> None:
    parser = experiment_parser(__file__, __doc__, seconds=5.0, draws=3, size=224, batch=256)
    parser.add_argument("--network", choices=NETWORKS, default="mobilenet_v2")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--flags", nargs="*", default=FLAGS, help="of XLA (default: those above)")
    parser.add_argument("--keep", action="store_true", help="the choices of the fastest draw")
    arguments = parser.parse_args()
    options = ["--networks", arguments.network, "--dtypes", arguments.dtype]
    for name in ("size", "batch", "seconds"):
        options += [f"--{name}", str(getattr(arguments, name))]
    settings = [(f"draw {i + 1}", "") for i in range(arguments.draws)]
    settings += [(flag, flag) for flag in arguments.flags]
    with tempfile.TemporaryDirectory() as scratch:
        attempts = {
            setting: partial(measure, setting, flag, options, Path(scratch, str(number)))
            for number, (setting, flag) in enumerate(settings, start=1)
        }
        measured = list(tried("measuring", attempts))
        if not measured:
            raise UserError("nothing could be measured")
        lines = []
        for _, setting, median, low, high in (one.values() for one in measured):
            lines.append((setting, f"{median:,.0f}", f"{low:,.0f}-{high:,.0f}"))
        header = (f"images/s, {measured[0]['device']}", "median", "range")
        Table("autotuning", header, lines).write(arguments.out, measured)
        if arguments.keep:
            draws = [one for one in measured if one["setting"].startswith("draw")]
            best = max(draws, key=lambda one: one["images_per_second"])
            keep(Path(scratch, best["setting"].removeprefix("draw ")))


if __name__ == "__main__":
    run(main)
