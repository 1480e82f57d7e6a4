"""Compares exported files with the network in JAX: the same results, and the time they take."""

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mnv2.deployment.program import Program

TIMED = 30  # calls whose median is a time

type Run = Callable[[np.ndarray], np.ndarray]


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


def compare(
    path: Path, run: Run, operators: int, program: Program, images: np.ndarray, *, real: bool
) -> Compared:
    """Compares a file with the network in JAX on `images`, as the program takes them.

    With `real` they are pictures, so that it matters whether their classes agree.
    """
    expected = in_batches(jax.jit(program.output), program.image.shape[0])(images)
    outputs = run(images)
    same = float(np.mean(outputs.argmax(-1) == expected.argmax(-1)))
    return Compared(
        path,
        path.stat().st_size,
        operators,
        float(np.abs(outputs - expected).max()),
        same if real else None,
        milliseconds(run, images[: program.image.shape[0]]),
    )


def in_batches(compute: Callable[[np.ndarray], object], size: int | None) -> Run:
    """Returns the function that computes outputs in batches of `size`; None: in one batch."""
    return functools.partial(_in_batches, compute, size)


def _in_batches(
    compute: Callable[[np.ndarray], object], size: int | None, images: np.ndarray
) -> np.ndarray:
    size = size or len(images)
    rows = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padding = [(0, size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
        rows.append(np.asarray(compute(np.pad(batch, padding)))[: len(batch)])
    return np.concatenate(rows)


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
        f"difference: the largest of {program.description.output}, to JAX, on {source}\n"
        f"times: median of {TIMED} calls with {batch} image{'s' * (batch > 1)}, "
        f"{threads} thread{'s' * (threads > 1)} (StableHLO: as many as JAX takes)"
    )
    return "\n".join(lines)
