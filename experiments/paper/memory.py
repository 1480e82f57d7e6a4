"""How much memory does it save to compute a block in slices? MobileNetV2 section 5.1.

Between its two 1x1 convolutions a block works channel by channel. So it can be computed as t
partial sums over slices of its expanded channels, with one slice in memory at a time. Checks that
the result is the same, and measures in float32, with batch norm folded:

    table 3      the paper's tensor sizes: as printed, and counted from the network
    blocks       the memory by equation 2, the temporaries that XLA plans, and the time
    network      of MobileNetV2 1.0 on one image of 224 pixels: the same, and the rise of the peak
                 of resident memory in a process that returns freed memory immediately
"""

import functools
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure

from experiments.common.experiment import Table, experiment_parser, run, write_csv
from experiments.common.networks import Submodule, normal, random_network, submodules
from experiments.common.timing import in_process, peak_memory, reset_peak_memory, times
from experiments.paper.slices import in_slices, inverted_residual_by_slices
from mnv2.models import fold_batch_norm
from mnv2.models.blocks import InvertedResidual
from mnv2.ops import explicit_padding
from mnv2.runtime.machine import TUNABLES
from mnv2.runtime.terminal import StatusLine

SIZE = 224  # pixels
SPLITS = (1, 2, 3, 4, 5, 6, 7, 8)
BLOCK_SPLITS = (1, 2, 3, 5, 8)
PROCESSES = 3
# Freed memory is unmapped. The default threshold of glibc grows, which makes the resident memory
# vary by 6 MB.
UNMAP = "glibc.malloc.mmap_threshold=131072"
PAUSE = 0.05  # seconds between images: XLA frees temporaries after it returns the result
BYTES = 4  # of a float32
CHECKED_WIDTHS = (1.0, 0.35)
ODD_IMAGE = (101, 75)  # the inputs of blocks are 51 x 38, 26 x 19, 13 x 10, 7 x 5, 4 x 3
# Table 3, in 16 bits. At each resolution: the channels and kB as printed, and the channels of the
# widest bottleneck there in the network of table 2.
TABLE_3 = (
    (112, 16, 400, 16),
    (56, 32, 200, 24),
    (28, 64, 100, 32),
    (14, 160, 62, 96),
    (7, 320, 32, 320),
    (1, 1280, 2, 1280),
)


class Measured(NamedTuple):
    """One block, or the whole network, in `splits` slices per block."""

    name: str
    splits: int
    equation_2: int  # bytes by equation 2, of the largest block
    planned: int  # bytes of temporaries that XLA plans
    milliseconds: float
    resident: int | None = None  # bytes, the rise of the peak of resident memory


def folded_network(width: float = 1.0) -> tuple[Any, Any]:
    model, variables = random_network("mobilenet_v2", width=width)
    return model, fold_batch_norm(model, variables)


def equation_2(block: Submodule, splits: int) -> int:
    """Returns the bytes that exist at the same time in a block that is computed in slices.

    These are the input, the output, and one slice before and after the depthwise convolution, for
    one image. This is equation 2 with the block as one operation; its size |op| is that slice.
    """
    _, height, width, inputs = block.input_shape
    stride, layers = block.module.stride, block.params
    after = -(-height // stride) * -(-width // stride)
    before = height * width if "expand" in layers else 0  # if not, this tensor is the input
    slice_channels = -(-layers["depthwise"]["kernel"].shape[-1] // splits)
    outputs = after * layers["project"]["kernel"].shape[-1]
    return BYTES * (height * width * inputs + outputs + slice_channels * (before + after))


def largest_error(width: float, line: StatusLine) -> float:
    """Returns the largest error of a block in slices, relative to the block's largest value.

    All blocks of a network of this width are tried on ODD_IMAGE, with t = 1 to 8 and with one slice
    per expanded channel.
    """
    largest = 0.0
    blocks = submodules(*folded_network(width), (1, *ODD_IMAGE, 3), InvertedResidual)
    for name, block in blocks.items():
        x, params = normal(block.input_shape), {"params": block.params}
        expected, _ = jax.jit(block.module.apply)(params, x)
        for splits in (*SPLITS, block.params["depthwise"]["kernel"].shape[-1]):
            line.say(f"checking width {width:g}, {name}, t = {splits}")
            with in_slices(splits):  # a new function, or JAX would use what it compiled before
                result, _ = jax.jit(functools.partial(block.module.apply))(params, x)
            error = jnp.abs(result - expected).max() / jnp.abs(expected).max()
            largest = max(largest, float(error))
    return largest


def measured(compiled: Any, x: jax.Array, seconds: float) -> tuple[int, float]:
    """Returns the bytes of temporaries that XLA plans, and the median milliseconds of a call."""
    jax.block_until_ready(compiled(x))
    median = statistics.median(times(lambda: jax.block_until_ready(compiled(x)), seconds))
    return int(compiled.memory_analysis().temp_size_in_bytes), 1000 * median


def measure_block(name: str, block: Submodule, splits: int, seconds: float) -> Measured:
    x, stride = normal(block.input_shape), block.module.stride
    padding = explicit_padding((x.shape[1], x.shape[2]), 3, stride, "same")
    # The weights are constants, as in inference, so they are sliced during compilation.
    program = jax.jit(
        lambda x: inverted_residual_by_slices(x, block.params, splits, stride, padding)
    )
    compiled = program.lower(x).compile()
    return Measured(name, splits, equation_2(block, splits), *measured(compiled, x, seconds))


def measure_network(splits: int, largest: int, seconds: float) -> Measured:
    """Measures the network on one image, with `splits` slices of each block.

    The milliseconds are the median of three processes. The resident memory is that of a fourth one,
    which returns freed memory to the system immediately, and is slower for it. `largest` has the
    bytes of the largest block by equation 2.
    """
    found = []
    for tunables in (*[""] * PROCESSES, UNMAP):
        os.environ[next(iter(TUNABLES))] = tunables  # glibc reads this when the process starts
        found.append(in_process(_infer, splits, seconds))
    *as_usual, (_, _, resident) = found
    median = statistics.median(milliseconds for _, milliseconds, _ in as_usual)
    return Measured("network", splits, largest, found[0][0], median, resident)


def _infer(splits: int, seconds: float) -> tuple[int, float, int]:
    """Returns the planned bytes, the milliseconds per image, and the rise of the peak in bytes."""
    model, variables = folded_network()
    image = jnp.zeros((1, SIZE, SIZE, 3))
    with in_slices(splits):
        compiled = jax.jit(lambda x: model.apply(variables, x)).lower(image).compile()
    reset_peak_memory()
    before = peak_memory()
    for _ in range(5):
        jax.block_until_ready(compiled(image))
        time.sleep(PAUSE)
    resident = peak_memory() - before
    return *measured(compiled, image, seconds), resident


def table_of_blocks(rows: Sequence[Measured]) -> Table:
    """Returns one line per block: for each t the planned MB, and in brackets equation 2's MB."""
    cells = [f"{row.planned / 1e6:.2f} ({row.equation_2 / 1e6:.2f})" for row in rows]
    count = len(BLOCK_SPLITS)
    lines = [(i, *cells[i * count : (i + 1) * count]) for i in range(len(rows) // count)]
    return Table("memory_blocks", ("block", *(f"t = {t}" for t in BLOCK_SPLITS)), lines)


def table_of_networks(rows: Sequence[Measured]) -> Table:
    lines = [
        (
            row.splits,
            *(f"{size / 1e6:.1f}" for size in (row.equation_2, row.planned, row.resident or 0)),
            f"{row.milliseconds:.1f}",
        )
        for row in rows
    ]
    header = (
        *("slices of each block", "largest block by equation 2, MB"),
        *("planned temporaries, MB", "peak resident, MB", "ms per image"),
    )
    return Table("memory_network", header, lines)


def table_3() -> Table:
    """Returns table 3, as printed and counted: the largest tensor between layers, 16 bits."""
    lines = [
        (
            *(f"{side} x {side}", f"{channels} / {printed}"),
            *(f"{2 * side**2 * channels / 1000:.0f}", real, f"{2 * side**2 * real / 1000:.0f}"),
        )
        for side, channels, printed, real in TABLE_3
    ]
    header = ("pixels", "channels / kB, printed", "counted, kB", "in the network", "kB")
    return Table("memory_table_3", header, lines)


def draw(blocks: Sequence[Measured], network: Sequence[Measured], path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    of_blocks, of_memory, of_time = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    for i, splits in enumerate(BLOCK_SPLITS):
        planned = [row.planned / 1e6 for row in blocks if row.splits == splits]
        names = [str(number) for number in range(len(planned))]
        color = matplotlib.colormaps["viridis"](i / len(BLOCK_SPLITS))
        of_blocks.plot(names, planned, color=color, marker="osD^v"[i], label=f"t = {splits}")
    of_blocks.set(xlabel="block", ylabel="planned temporaries, MB", title="each block alone")
    of_blocks.set_yscale("log")
    of_blocks.set_yticks((0.2, 0.5, 1, 2, 5, 10), ("0.2", "0.5", "1", "2", "5", "10"))
    of_blocks.minorticks_off()
    of_blocks.legend(fontsize="small")
    slices = [row.splits for row in network]
    for field, label, style in (
        ("resident", "peak resident memory, its rise", "k--s"),
        ("planned", "planned temporaries", "k-o"),
        ("equation_2", "largest block by equation 2", "k:^"),
    ):
        values = [getattr(row, field) / 1e6 for row in network]
        of_memory.plot(slices, values, style, markerfacecolor="w", label=label)
    of_memory.set(ylabel="MB", title=f"MobileNetV2 1.0, {SIZE} pixels: memory")
    of_memory.legend(fontsize="small")
    of_time.plot(slices, [row.milliseconds for row in network], "k-o", markerfacecolor="w")
    of_time.set(ylabel="ms per image", title="and time")
    for axis in (of_memory, of_time):
        axis.set_ylim(bottom=0)
        axis.set(xticks=slices, xlabel="slices t of every block")
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, seconds=0.3).parse_args()
    line = StatusLine("memory")
    for width in CHECKED_WIDTHS:
        error = largest_error(width, line)
        line.clear()
        print(f"width {width:g}: the largest relative error of a block in slices is {error:.1e}")
    blocks, network = [], []
    found = submodules(*folded_network(), (1, SIZE, SIZE, 3), InvertedResidual)
    for name, block in found.items():
        line.say(name)
        blocks += [measure_block(name, block, t, arguments.seconds) for t in BLOCK_SPLITS]
    for t in SPLITS:
        line.say(f"network in {t} slices")
        largest = max(equation_2(block, t) for block in found.values())
        network.append(measure_network(t, largest, arguments.seconds))
    line.clear()
    for table in (table_3(), table_of_blocks(blocks), table_of_networks(network)):
        table.write(arguments.out)
    write_csv([*blocks, *network], arguments.out / "memory.csv")
    draw(blocks, network, arguments.out / "memory.png")
    print(f"\nin {arguments.out}: memory.csv, memory.png")


if __name__ == "__main__":
    run(main)
