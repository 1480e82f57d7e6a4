"""Reports which classes a network confuses: the most frequent mistakes, a CSV file and a figure."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.colors
import matplotlib.figure
import numpy as np
from jaxtyping import Int

from mnv2.runtime.files import replacing
from mnv2.runtime.terminal import drawn

Confusion = Int[np.ndarray, "true predicted"]

NUMBERED = 20  # the figure shows numbers for at most this number of classes


def commonest_mistakes(confusion: Confusion, count: int = 5) -> list[tuple[int, int, float]]:
    """Returns (true class, predicted class, per cent of the true class), most frequent first."""
    shares = _percent(confusion)
    np.fill_diagonal(shares, 0)
    indices = np.argsort(-shares, axis=None)[:count]
    pairs = [divmod(int(index), len(confusion)) for index in indices]
    return [
        (true, predicted, float(shares[true, predicted]))
        for true, predicted in pairs
        if shares[true, predicted]
    ]


def to_csv(confusion: Confusion, labels: Sequence[str]) -> str:
    """Formats the counts as CSV: one row per true class, one column per predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["", *labels])
    writer.writerows([name, *row] for name, row in zip(labels, confusion, strict=True))
    return text.getvalue()


def draw(confusion: Confusion, labels: Sequence[str], title: str, path: Path) -> None:
    """Draws one row per true class and one column per predicted class, in per cent of the row."""
    shares = _percent(confusion)
    few = len(labels) <= NUMBERED
    side = 3 + 0.5 * len(labels) if few else 9
    figure = matplotlib.figure.Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    # Most mistakes of a good network are below 10 %; the square root makes them visible.
    scale = matplotlib.colors.PowerNorm(0.5, 0, 100)
    image = axis.imshow(shares, cmap="Greys", norm=scale, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    if few:
        names = list(map(drawn, labels))
        axis.set_xticks(range(len(labels)), names, rotation=45, ha="right")
        axis.set_yticks(range(len(labels)), names)
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.05:
                color = "white" if share > 30 else "black"
                axis.text(column, row, f"{share:.0f}" if share >= 1 else f"{share:.1f}",
                          ha="center", va="center", color=color, fontsize="small")  # fmt: skip
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    axis.set_title(drawn(title), fontsize="medium")
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format=path.suffix.removeprefix("."))


def _percent(confusion: Confusion) -> np.ndarray:
    return 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
