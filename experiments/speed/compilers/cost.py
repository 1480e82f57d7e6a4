"""Reads from a compiled program what it will cost.

XLA's TPU compiler writes its estimate of the cycles beside each fusion. Its GPU compiler does not;
there, every kernel reads its operands from memory and writes its results, and the bytes of these
are counted. A tensor that stays in the cache between two kernels is counted all the same.
"""

import collections
import dataclasses
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)")
NAME = re.compile(r'op_name="([^"]*)"')
# Bytes of the types that are not 4 bytes wide.
WIDTHS = {"bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
FREE = ("parameter", "tuple", "get-tuple-element", "bitcast", "constant")  # move nothing
# Parts of the names of mnv2's layers, and the kinds that they belong to.
KINDS = (
    ("depthwise", "depthwise"),
    ("expand", "1x1"),
    ("project", "1x1"),
    ("pointwise", "1x1"),
    ("narrow", "1x1"),
    ("widen", "1x1"),
    ("shortcut", "1x1"),
    ("last", "1x1"),
    ("stem", "stem"),
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one program.

    Attributes:
        compile_seconds: How long the compiler took.
        memory: Bytes of the chip's memory: arguments, results and temporary tensors.
        flops: Floating-point operations, as XLA counts them.
        traffic: Bytes read and written. On a TPU as XLA counts them, on a GPU summed over kernels.
        cycles: A TPU's estimated cycles; 0 on a GPU.
        kernels: The kernels of a GPU; 0 on a TPU.
        by_kind: Cycles or traffic by kind of layer, "depthwise backward" and so on.
    """

    compile_seconds: float
    memory: float
    flops: float
    traffic: float
    cycles: float
    kernels: int
    by_kind: dict[str, float]


def compile_and_read(lowered: Any, platform: str) -> Cost:
    """Compiles a lowered step and reads its cost."""
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis() or {}  # CUDA has none
    analysis = analysis[0] if isinstance(analysis, list) else analysis
    used = memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    used -= memory.alias_size_in_bytes
    read = cycles if platform == "tpu" else traffic
    parts = list(read(compiled.as_text()))
    by_kind: dict[str, float] = collections.defaultdict(float)
    for name, amount in parts:
        by_kind[kind(name)] += amount
    total = float(sum(amount for _, amount in parts))
    on_tpu = platform == "tpu"
    return Cost(
        compile_seconds=seconds,
        memory=used,
        flops=analysis.get("flops", 0),
        traffic=analysis.get("bytes accessed", 0) if on_tpu else total,
        cycles=total if on_tpu else 0,
        kernels=0 if on_tpu else len(parts),
        by_kind=dict(by_kind),
    )


def cycles(text: str) -> Iterator[tuple[str, float]]:
    """Yields (name of the operation, estimated cycles) for each fusion of a TPU's program."""
    for line in text.splitlines():
        if found := CYCLES.search(line):
            yield _name(line), float(found[1])


def traffic(text: str) -> Iterator[tuple[str, float]]:
    """Yields (name of the operation, bytes read and written) for each kernel of a GPU's program."""
    sizes: dict[str, int] = {}
    for line in text[text.index("ENTRY") :].splitlines()[1:]:
        if not (found := INSTRUCTION.match(line)):
            continue
        label, shape, operation, rest = found.groups()
        sizes[label] = _bytes(shape)
        if operation not in FREE:
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            yield _name(line), sizes[label] + sum(sizes.get(each, 0) for each in operands)


def kind(name: str) -> str:
    """Returns the kind of layer that an operation belongs to, and its direction.

    XLA gives a fusion the name of one of its operations. Batch norm and ReLU6 are therefore part of
    the convolution that they are fused with.
    """
    layer = next((kind for part, kind in KINDS if part in name), "other")
    return f"{layer} {'backward' if 'transpose(' in name else 'forward'}"


def _name(line: str) -> str:
    found = NAME.search(line)
    return found[1] if found else ""


def _bytes(shapes: str) -> int:
    return sum(
        WIDTHS.get(kind, 4) * int(np.prod([int(n) for n in numbers.split(",") if n]))
        for kind, numbers in SHAPE.findall(shapes)
    )
