"""Reads from a compiled program what it will cost.

XLA's TPU compiler writes its estimate of the cycles beside each fusion. Its GPU compiler does not;
there, every kernel reads its operands from memory and writes its results, and the bytes of these
are counted. A tensor that stays in the cache between two kernels is counted all the same.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
# Bytes of the types that are not 4 bytes wide.
WIDTHS = {"bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")  # move nothing


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one program.

    Attributes:
        memory: Bytes of the chip's memory: arguments, results and temporary tensors.
        traffic: Bytes that a GPU's kernels read and write; 0 on a TPU.
        cycles: A TPU's estimated cycles; 0 on a GPU.
        kernels: The kernels of a GPU; 0 on a TPU.
    """

    memory: float
    traffic: float
    cycles: float
    kernels: int


def compile_and_read(lowered: Any, platform: str) -> Cost:
    """Compiles a lowered step and reads its cost."""
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    used -= memory.alias_size_in_bytes
    on_tpu = platform == "tpu"
    parts = list((cycles if on_tpu else traffic)(compiled.as_text()))
    return Cost(
        memory=used,
        traffic=0 if on_tpu else sum(parts),
        cycles=sum(parts) if on_tpu else 0,
        kernels=0 if on_tpu else len(parts),
    )


def cycles(text: str) -> list[float]:
    """Returns the estimated cycles of each fusion of a TPU's program."""
    return [float(found) for found in CYCLES.findall(text)]


def traffic(text: str) -> Iterator[float]:
    """Yields the bytes that each kernel of a GPU's program reads and writes."""
    sizes: dict[str, int] = {}
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        if not (found := INSTRUCTION.match(line)):
            continue
        label, shape, operation, rest = found.groups()
        sizes[label] = _bytes(shape)
        if operation not in FREE:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            yield sizes[label] + sum(sizes.get(each, 0) for each in operands)


def _bytes(shapes: str) -> int:
    return sum(
        WIDTHS.get(kind, 4) * int(np.prod([int(n) for n in numbers.split(",") if n]))
        for kind, numbers in SHAPE.findall(shapes)
    )
