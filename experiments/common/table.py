"""A table of results: printed, and written as Markdown and as CSV."""

import csv
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2.runtime.files import write_text


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells under a header: text in the first column, numbers in the others."""

    name: str
    header: Sequence[str]
    lines: Sequence[Sequence[object]]

    def __str__(self) -> str:
        lines = [[str(cell) for cell in line] for line in (self.header, *self.lines)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
            for first, *others in lines
        ]
        return "\n".join("  ".join(line).rstrip() for line in aligned)

    def markdown(self) -> str:
        lines = [self.header, ["---", *["--:"] * (len(self.header) - 1)], *self.lines]
        return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)

    def write(self, folder: Path, records: Sequence[Any] = ()) -> None:
        """Prints the table, and writes it to FOLDER/NAME.md; `records` to FOLDER/NAME.csv."""
        print(f"\n{self}", flush=True)
        write_text(folder / f"{self.name}.md", self.markdown())
        if records:
            write_csv(records, folder / f"{self.name}.csv")


def write_csv(records: Sequence[Any], path: Path) -> None:
    """Writes named tuples, or mappings with the same keys, as CSV: the unrounded results."""
    rows = [one if isinstance(one, Mapping) else one._asdict() for one in records]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
