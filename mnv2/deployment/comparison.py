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


class Images(NamedTuple):
    """What files are compared on: images in [0, 255], what they are, and if they are pictures."""

    images: np.ndarray
    source: str
    real: bool


def compare(
    paths: Sequence[Path], program: Program, images: Images, batch: int | None, threads: int
) -> str:
    """Compares files with the network in JAX; `batch` is how many images they take, None: any.

    Returns a table: the size in bytes, the number of operators, the largest absolute difference of
    outputs, the share of pictures with the same most probable class, and the time of an image.
    """
    inputs, size = program.description.input_of(images.images), program.image.shape[0]
    expected = in_batches(jax.jit(program.output), size)(inputs)
    width = max(len(path.name) for path in paths)
    lines = [f"{'file':{width}}  {'size':>8}  operators  difference  same class  ms/image"]
    for path in paths:
        run, operators = _opened(path, batch, threads)
        outputs = run(inputs)
        same = np.mean(outputs.argmax(-1) == expected.argmax(-1))
        agreement = f"{100 * same:.1f} %" if images.real else ""
        lines.append(
            f"{path.name:{width}}  {path.stat().st_size / 1e6:5.2f} MB  {operators:>9}  "
            f"{np.abs(outputs - expected).max():10.1e}  {agreement:>10}  "
            f"{_milliseconds(run, inputs[:size]):8.2f}"
        )
    return "\n".join(lines) + (
        f"\nin {paths[0].parent}\ndifference: the largest of {program.description.output_name}, to "
        f"JAX, on {images.source}\n"
        f"times: median of {TIMED} calls with {size} image{'s' * (size > 1)}, "
        f"{threads} thread{'s' * (threads > 1)} (StableHLO: as many as JAX takes)"
    )


def _opened(path: Path, batch: int | None, threads: int) -> tuple[Run, int]:
    """Returns what runs a file, and its number of operators."""
    if is_exported(path):
        exported = open_exported(path, threads)
        return exported.run, len(exported.operators)
    stored = jax.export.deserialize(bytearray(path.read_bytes()))
    return in_batches(jax.jit(stored.call), batch), stored.mlir_module().count(" stablehlo.")


def _milliseconds(run: Run, images: np.ndarray) -> float:
    """Returns the median time of a call, per image."""
    run(images)
    times = []
    for _ in range(TIMED):
        began = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times) / len(images)
