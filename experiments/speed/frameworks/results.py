"""The measured speed and memory of frameworks, as text and as CSV."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.common import writers
from experiments.speed.frameworks.tasks import Task

OURS = "mnv2"
PEERS = ("PyTorch", "torch.compile", "Keras")  # the best of these has the ratio 1


class Row(NamedTuple):
    """One framework at one task."""

    task: Task
    settings: str  # turns.AS_RUN or turns.PAGES
    name: str
    images_per_second: tuple[float, ...]  # one per round
    peak_memory: int  # bytes

    @property
    def median(self) -> float:
        """Images per second: the median of the rounds."""
        return statistics.median(self.images_per_second)

    @property
    def panel(self) -> str:
        """The title of the panel that shows this row."""
        return f"{self.task}\n{self.settings}"


def print_rows(rows: Sequence[Row]) -> None:
    """Prints the table of one task, fastest first."""
    if not rows:
        return
    best = max((row.median for row in rows if row.name in PEERS), default=None)
    task, settings = rows[0].task, rows[0].settings
    print(f"\n{task}, {task.threads} threads, {settings}")
    width = max(len(row.name) for row in rows)
    titles = f"{'images/s':>9} {'range':>15} {'ms/batch':>9} {'ratio':>6} {'peak memory':>12}"
    print(f"  {'':{width}} {titles}")
    for row in sorted(rows, key=lambda row: -row.median):
        low, high = min(row.images_per_second), max(row.images_per_second)
        ratio = f"{row.median / best:.2f}" if best else ""
        print(
            f"  {row.name:{width}} {row.median:9,.1f} {f'{low:,.1f}-{high:,.1f}':>15} "
            f"{1000 * task.batch / row.median:9.2f} {ratio:>6} "
            f"{row.peak_memory / 2**20:8,.0f} MiB",
            flush=True,
        )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes one line per row: the fields of its task, then the measurements."""
    writers.write_csv(
        [row.task for row in rows],
        path,
        {
            "settings": [row.settings for row in rows],
            "framework": [row.name for row in rows],
            "images_per_second": [f"{row.median:.4g}" for row in rows],
            "lowest": [f"{min(row.images_per_second):.4g}" for row in rows],
            "highest": [f"{max(row.images_per_second):.4g}" for row in rows],
            "peak_mib": [round(row.peak_memory / 2**20) for row in rows],
        },
        digits=None,
        line_end="\r\n",
    )


def ranges(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Returns how far the rounds of each row lie below and above their median, for error bars."""
    below = [row.median - min(row.images_per_second) for row in rows]
    return below, [max(row.images_per_second) - row.median for row in rows]
