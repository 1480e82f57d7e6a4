"""Writes the results of an experiment: rows as CSV, tables as Markdown."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2.runtime.files import write_text


def write_csv(
    rows: Sequence[Any],
    path: Path,
    derived: Mapping[str, Sequence[Any]] | None = None,
    *,
    digits: int | None = 6,
    line_end: str = "\n",
) -> None:
    """Writes rows as CSV, with the names of their fields as header.

    Args:
        rows: At least one row; all are of the same named tuple or dataclass.
        path: The file to write.
        derived: Further columns. Each has a name and one value per row.
        digits: The significant digits of a float. None writes the shortest text that gives the
            same float when it is read.
        line_end: What ends a line.
    """
    derived = derived or {}

    def text(value: Any) -> Any:
        return f"{value:.{digits}g}" if digits and isinstance(value, float) else value

    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator=line_end)
        writer.writerow([*_fields(rows[0]), *derived])
        for row, *further in zip(rows, *derived.values(), strict=True):
            writer.writerow([text(value) for value in (*_fields(row).values(), *further)])


def _fields(row: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    return row._asdict()


def write_markdown(folder: Path, name: str, header: Sequence[str], rows: Sequence[Any]) -> None:
    """Writes a table to FOLDER/NAME.md: text in the first column, numbers in the others."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    write_text(folder / f"{name}.md", text)
