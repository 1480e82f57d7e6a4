"""The measured speed and memory of frameworks, as tables and as CSV."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.common import table
from experiments.speed.frameworks.tasks import Task

OURS = "mnv2"
HEADER = ("", "images/s", "memory, MiB", "images/s, huge pages for all", "memory, MiB")


class Row(NamedTuple):
    task: Task
    settings: str  # turns.AS_RUN or turns.PAGES
    name: str
    images_per_second: tuple[float, ...]  # one per round
    peak_memory: int  # bytes

    @property
    def median(self) -> float:
        return statistics.median(self.images_per_second)


def table_of(rows: Sequence[Row], name: str = "") -> table.Table:
    """Returns the table of one task, fastest first, with two columns for each of its settings."""
    settings = list(dict.fromkeys(row.settings for row in rows))
    cells = {(row.name, row.settings): _cells(row) for row in rows}
    first = sorted((r for r in rows if r.settings == settings[0]), key=lambda row: -row.median)
    lines = [
        [row.name, *(cell for each in settings for cell in cells.get((row.name, each), ("", "")))]
        for row in first
    ]
    return table.Table(name, HEADER[: 1 + 2 * len(settings)], lines)


def _cells(row: Row) -> tuple[str, str]:
    speeds = (row.median, min(row.images_per_second), max(row.images_per_second))
    median, *ends = map(rounded, speeds)
    return f"{median} ({'-'.join(ends)})", f"{row.peak_memory / 2**20:,.0f}"


def rounded(speed: float) -> str:
    """Returns images per second as tables have them: below 100 with a decimal."""
    return f"{speed:,.{0 if speed >= 100 else 1}f}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Writes one line per row: the fields of its task, then the measurements."""
    records = [
        {
            **vars(row.task),
            "settings": row.settings,
            "framework": row.name,
            "images_per_second": f"{row.median:.4g}",
            "lowest": f"{min(row.images_per_second):.4g}",
            "highest": f"{max(row.images_per_second):.4g}",
            "peak_mib": round(row.peak_memory / 2**20),
        }
        for row in rows
    ]
    table.write_csv(records, path)


def ranges(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    """Returns how far the rounds of each row lie below and above their median, for error bars."""
    below = [row.median - min(row.images_per_second) for row in rows]
    return below, [max(row.images_per_second) - row.median for row in rows]
