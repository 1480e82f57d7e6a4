"""How much of a plane curve does ReLU destroy? Figure 1 and theorem 1 of the MobileNetV2 paper.

A random matrix T embeds a spiral in n dimensions. ReLU is applied, and the pseudo-inverse of T
brings the spiral back. One draw of T for each n is drawn. Over many draws these are measured:

    collapsed    the share of points with fewer than two positive channels. The position of such a
                 point in the plane is lost (lemma 2). Theorem 1 gives the mean of this share. In a
                 plane it is (n + 1) / 2^n: fewer than two of n fair coins show heads
    errors       the RMS error of the result, in % of the spiral's size, and that with the best
                 linear map instead of the pseudo-inverse. They are medians over draws, since the
                 error of a nearly singular T has no bound
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np
from jaxtyping import Float

from experiments.common.experiment import Table, experiment_parser, run

PLANE = 2  # dimensions of the space that is embedded
DIMENSIONS = (2, 3, 5, 15, 30)


class Row(NamedTuple):
    """The measurements for one number of dimensions, as shares (1 is 100 %)."""

    dimensions: int
    collapsed: float  # mean over draws
    theorem: float  # mean by theorem 1
    error: float  # median over draws
    best_error: float  # median over draws


def spiral(points: int = 1000, turns: float = 2.5) -> Float[np.ndarray, "2 points"]:
    """Returns a spiral from the middle outwards; the root mean square of its radius is 1."""
    radius = np.sqrt(np.linspace(0.002, 1, points))
    angle = 2 * np.pi * turns * radius
    curve = radius * np.stack([np.cos(angle), np.sin(angle)])
    return curve / np.sqrt(np.mean(np.sum(curve**2, axis=0)))


def embed(
    curve: Float[np.ndarray, "2 points"], dimensions: int, random: np.random.Generator
) -> tuple[Float[np.ndarray, "n points"], Float[np.ndarray, "2 points"]]:
    """Returns ReLU(T curve) and what the pseudo-inverse makes of it, for a random T."""
    matrix = random.normal(size=(dimensions, PLANE))
    wide = np.maximum(matrix @ curve, 0)
    return wide, np.linalg.pinv(matrix) @ wide


def measure(curve: Float[np.ndarray, "2 points"], dimensions: int, draws: int) -> Row:
    random = np.random.default_rng(dimensions)
    collapsed, errors = [], []
    for _ in range(draws):
        wide, back = embed(curve, dimensions, random)
        collapsed.append(np.mean(np.count_nonzero(wide, axis=0) < PLANE))
        best = np.linalg.lstsq(wide.T, curve.T, rcond=None)[0].T
        errors.append((_error(curve, back), _error(curve, best @ wide)))
    medians = np.median(errors, axis=0).tolist()
    theorem = (dimensions + 1) / 2**dimensions
    return Row(dimensions, float(np.mean(collapsed)), theorem, *medians)


def _error(curve: np.ndarray, back: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum((back - curve) ** 2, axis=0))))


def table(rows: Sequence[Row]) -> Table:
    formats = ("{}", "{:.3%}", "{:.3%}", "{:.1%}", "{:.1%}")
    lines = [[f.format(x).rstrip("%") for f, x in zip(formats, row, strict=True)] for row in rows]
    errors = ("error by the pseudo-inverse, %", "error by the best linear map, %")
    return Table("manifold", ("n", "points that collapse, %", "theorem 1, %", *errors), lines)


def draw(curve: np.ndarray, rows: Sequence[Row], path: Path) -> None:
    """Draws the spiral, and its image under one T for each n; dark to light from the middle."""
    figure = matplotlib.figure.Figure(figsize=(3 * (len(rows) + 1), 3.5), layout="constrained")
    panels = [(curve, "input", "")]
    for row in rows:
        _, back = embed(curve, row.dimensions, np.random.default_rng(0))
        below = f"collapsed {100 * row.collapsed:.2g} %, error {100 * row.error:.0f} %"
        panels.append((back, f"n = {row.dimensions}", below))
    for axis, (points, title, below) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.scatter(*points, c=np.arange(points.shape[1]), cmap="viridis", s=3)
        axis.set_aspect("equal", adjustable="datalim")
        axis.set(title=title, xlabel=below, xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, draws=1000).parse_args()
    curve = spiral()
    rows = [measure(curve, dimensions, arguments.draws) for dimensions in DIMENSIONS]
    table(rows).write(arguments.out, rows)
    draw(curve, rows, arguments.out / "manifold.png")
    print(f"\nover {arguments.draws} draws; in {arguments.out}: manifold.csv, manifold.png")


if __name__ == "__main__":
    run(main)
