"""What does each form of an operation for GPUs gain in a whole training step?

Times training steps of one network on JAX's default device, with the images on it, in turns: as
mnv2 computes them, and each time without one of its forms for CUDA.

  all         the kernels of `mnv2.ops.depthwise_triton`, and matrices with multiples of 8 columns
  apart       the same kernels, but without the parts of batch norm in them
  unaligned   matrices of moments with as many columns as there are inputs, and one
  no kernels  depthwise convolutions as sums of shifted products, their gradient by cuDNN

On a CPU or TPU all are the same. Prints and writes ms per step, the median of the rounds and their
range, to --out. With the default rounds it takes less than ten minutes on a GPU.
"""

import contextlib
from unittest import mock

import jax
import numpy as np

from experiments.common.experiment import Table, experiment_parser, run
from experiments.common.timing import Step, in_turns
from experiments.speed.frameworks import our_steps
from experiments.speed.frameworks.tasks import NETWORKS, Task
from mnv2.ops import depthwise, depthwise_norm, expansion
from mnv2.runtime.machine import find_devices, threads
from mnv2.runtime.terminal import StatusLine

DTYPES = ("bfloat16", "float32")
VARIANTS = {
    "all": (),
    "apart": (
        (depthwise_norm, "_convolve_on_cuda", depthwise_norm._convolve),
        (depthwise_norm, "_gradients_on_cuda", depthwise_norm._gradients),
    ),
    "unaligned": ((expansion, "CUDA_COLUMNS", 1),),
    "no kernels": ((depthwise, "kernels_for_cuda", lambda: None),),
}


def compiled(variant: str, task: Task) -> Step:
    """Returns a training step without the forms of a variant, after its first call."""
    with contextlib.ExitStack() as until:
        for module, name, value in VARIANTS[variant]:
            until.enter_context(mock.patch.object(module, name, value))
        jax.clear_caches()  # of the forms that were traced before
        step = our_steps.training(task, None)
        step()
    return step


def main() -> None:
    parser = experiment_parser(__file__, __doc__, rounds=5, seconds=2.0, size=224, batch=256)
    parser.add_argument("--network", choices=NETWORKS, default="mobilenet_v2")
    arguments = parser.parse_args()
    print(f"device: {find_devices()}", flush=True)
    records = []
    for dtype in DTYPES:
        task = Task("train", arguments.network, 1.0, arguments.size, arguments.batch, threads(),
                    dtype=dtype)  # fmt: skip
        steps, line = {}, StatusLine(dtype)
        for variant in VARIANTS:
            line.say(f"compiling  {variant}")
            steps[variant] = compiled(variant, task)
        line.clear()
        seconds = in_turns(steps, arguments.rounds, arguments.seconds, dtype)
        for variant, found in seconds.items():
            low, median, high = (1e3 * float(np.quantile(found, q)) for q in (0, 0.5, 1))
            records.append({"dtype": dtype, "variant": variant, "ms": median, "lowest": low,
                            "highest": high})  # fmt: skip
    rows = [
        (f"{x['variant']}, {x['dtype']}", f"{x['ms']:.2f}", f"{x['lowest']:.2f}-{x['highest']:.2f}")
        for x in records
    ]
    Table("variants", ("ms per step", "median", "range"), rows).write(arguments.out, records)


if __name__ == "__main__":
    run(main)
