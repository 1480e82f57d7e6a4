"""Compares exported files with the network in JAX: the same results, and the time they take."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mnv2.deployment.exported import Run, in_batches, is_exported, open_exported
from mnv2.deployment.program import Program

TIMED = 30  # calls whose median is a time


class Compared(NamedTuple):
    """An exported file next to the network in JAX.

    size          of the file, in bytes
    operators     the number of them; 0 if it is not known
    difference    the largest absolute difference between the outputs
    agreement     the share of images with the same most probable class; None without pictures
    milliseconds  per image, median
    """

    path: Path
    size: int
    operators: int
    difference: float
    agreement: float | None
    milliseconds: float


class Images(NamedTuple):
    """What files are compared on: images in [0, 255], what they are, and if they are pictures."""

    images: np.ndarray
    source: str
    real: bool


def compare(
    path: Path, program: Program, images: Images, batch: int | None, threads: int
) -> Compared:
    """Compares a file with the network in JAX; `batch` is how many images it takes, None: any."""
    inputs = program.description.input_of(images.images)
    if is_exported(path):
        exported = open_exported(path, threads)
        run, operators = exported.run, len(exported.operators)
    else:
        stored = jax.export.deserialize(bytearray(path.read_bytes()))
        run = in_batches(jax.jit(stored.call), batch)
        operators = stored.mlir_module().count(" stablehlo.")
    expected = in_batches(jax.jit(program.output), program.image.shape[0])(inputs)
    outputs = run(inputs)
    same = float(np.mean(outputs.argmax(-1) == expected.argmax(-1)))
    return Compared(
        path,
        path.stat().st_size,
        operators,
        float(np.abs(outputs - expected).max()),
        same if images.real else None,
        milliseconds(run, inputs[: program.image.shape[0]]),
    )


def milliseconds(run: Run, images: np.ndarray) -> float:
    """Returns the median time of a call, per image."""
    run(images)
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times) / len(images)


def table(rows: Sequence[Compared], program: Program, source: str, threads: int) -> str:
    """Formats files as lines of text, with what the numbers mean below."""
    width = max(4, *(len(str(row.path)) for row in rows))
    lines = [f"{'file':{width}}  {'size':>8}  operators  difference  same class  ms per image"]
    for row in rows:
        agreement = "" if row.agreement is None else f"{100 * row.agreement:.1f} %"
        lines.append(
            f"{row.path!s:{width}}  {row.size / 1e6:5.2f} MB  {row.operators or '':>9}  "
            f"{row.difference:10.1e}  {agreement:>10}  {row.milliseconds:12.2f}"
        )
    batch = program.image.shape[0]
    lines.append(
        f"difference: the largest of {program.description.output_name}, to JAX, on {source}\n"
        f"times: median of {TIMED} calls with {batch} image{'s' * (batch > 1)}, "
        f"{threads} thread{'s' * (threads > 1)} (StableHLO: as many as JAX takes)"
    )
    return "\n".join(lines)
