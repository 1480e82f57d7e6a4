"""Reads from a compiled program what it will cost.

XLA's TPU compiler writes its estimate of the cycles beside each fusion. Its GPU compiler does not;
there, every kernel reads its operands from memory and writes its results, and the bytes of these
are counted. A tensor that stays in the cache between two kernels is counted all the same. A kernel
also takes the time in which its instructions are issued: see `instructions`.
"""

import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.speed.compilers import instructions
from experiments.speed.compilers.chips import Chip

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
# Bytes of the types that are not 4 bytes wide.
WIDTHS = {"bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
NAME = re.compile(r'op_name="([^"]*)"')
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")  # move nothing
# Kernels that move less than this share of a program's bytes are not disassembled: it takes half a
# second for each.
SMALLEST_SHARE = 5e-4
SMALL = 1e7  # bytes; a kernel that moves fewer waits for its launch rather than for memory
NARROW = 8  # instructions that load two bytes, from which on a kernel is listed for them
# The kinds of kernels, by the path of an operation that they compute. The first that fits counts.
KINDS = {
    "depthwise convolution": r"/depthwise\w*/pallas_call|depthwise\._convolve/",
    "batch norm after depthwise": r"/depthwise/bn/",
    "expansion with batch norm": r"/expand/",
    "projection or pointwise": r"(project|pointwise)\._convolve/",
    "batch norm after that": r"/(project|pointwise)/bn/",
    "first, last, classifier": r"/(stem|last_conv|classifier)/",
    "other": r"",
}


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one program.

    Attributes:
        memory: Bytes of the chip's memory: arguments, results and temporary tensors.
        cycles: A TPU's estimated cycles; 0 on a GPU.
        kernels: The kernels of a GPU, the largest first; none on a TPU.
    """

    memory: float
    cycles: float
    kernels: "list[Kernel]"

    def traffic(self) -> float:
        """Returns the bytes that the kernels read and write."""
        return sum(one.traffic for one in self.kernels)

    def seconds(self) -> float:
        """Returns the sum of the kernels' limits: each takes the larger of its two times."""
        return sum(one.seconds for one in self.kernels)

    def not_counted(self) -> float:
        """Returns the bytes of the kernels whose instructions are not known."""
        return sum(one.traffic for one in self.kernels if one.by_instructions is None)

    def narrow(self) -> float:
        """Returns the bytes of the kernels that load them two at a time."""
        return sum(one.traffic for one in self.kernels if one.narrow >= NARROW)

    def small(self) -> int:
        """Returns the number of kernels that move less than 10 MB."""
        return sum(one.traffic < SMALL for one in self.kernels)


class Kernel(NamedTuple):
    """A kernel of a GPU's program.

    Attributes:
        name: Of the operation in the program.
        layer: Path of one of the operations that it computes.
        traffic: Bytes that it reads and writes.
        by_bytes: Seconds in which the memory moves them.
        by_instructions: Seconds in which its instructions are issued; None if they are not known.
        narrow: Instructions in its code that load two bytes.
        spilled: Bytes that do not fit into its registers.
    """

    name: str
    layer: str
    traffic: float
    by_bytes: float = 0.0
    by_instructions: float | None = None
    narrow: int = 0
    spilled: int = 0

    @property
    def kind(self) -> str:
        """The kind of the layer, of KINDS."""
        return next(kind for kind, path in KINDS.items() if re.search(path, self.layer))

    @property
    def seconds(self) -> float:
        """The larger of both times."""
        return max(self.by_bytes, self.by_instructions or 0)


def compile_and_read(lowered: Any, chip: Chip, disassemble: bool) -> Cost:
    """Compiles a lowered step and reads its cost; that of instructions if `disassemble`."""
    on_tpu = chip.platform == "tpu"
    with tempfile.TemporaryDirectory() as folder:
        compiled = lowered.compile({} if on_tpu else instructions.dump_to(folder))
        kernels = [] if on_tpu else traffic(compiled.as_text())
        if disassemble and kernels:
            kernels = list(_with_times(kernels, Path(folder), chip))
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Cost(
        memory=used - memory.alias_size_in_bytes,
        cycles=sum(cycles(compiled.as_text())) if on_tpu else 0,
        kernels=sorted(kernels, key=lambda kernel: -kernel.traffic),
    )


def cycles(text: str) -> list[float]:
    """Returns the estimated cycles of each fusion of a TPU's program."""
    return [float(found) for found in CYCLES.findall(text)]


def traffic(text: str) -> list[Kernel]:
    """Returns the kernels of a GPU's program, with the bytes that they read and write."""
    sizes: dict[str, int] = {}
    kernels = []
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        if not (found := INSTRUCTION.match(line)):
            continue
        label, shape, operation, rest = found.groups()
        sizes[label] = _bytes(shape)
        if operation not in FREE:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            layer = NAME.search(line)
            moved = sizes[label] + sum(sizes.get(each, 0) for each in operands)
            kernels.append(Kernel(label, layer[1] if layer else "", moved))
    return kernels


def _with_times(kernels: list[Kernel], folder: Path, chip: Chip) -> Iterator[Kernel]:
    """Yields the kernels with the times that a GPU needs for their bytes and instructions."""
    assert chip.bandwidth
    assert chip.instructions
    launches, sources = instructions.launches(folder), instructions.sources(folder)
    least = SMALLEST_SHARE * sum(kernel.traffic for kernel in kernels)
    large = {launches[one.name].code for one in kernels if one.traffic >= least}
    wanted = sorted(large & sources.keys())  # libraries have none
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(instructions.assembled, (sources[code] for code in wanted))
        codes = dict(zip(wanted, found, strict=True))
    for one in kernels:
        launch = launches[one.name]
        one = one._replace(by_bytes=one.traffic / chip.bandwidth)
        if code := codes.get(launch.code):
            one = one._replace(narrow=code.narrow, spilled=code.spilled)
            if code.instructions:
                issued = code.instructions * launch.warps
                one = one._replace(by_instructions=issued / chip.instructions)
        yield one


def _bytes(shapes: str) -> int:
    return sum(
        WIDTHS.get(kind, 4) * int(np.prod([int(n) for n in numbers.split(",") if n]))
        for kind, numbers in SHAPE.findall(shapes)
    )
