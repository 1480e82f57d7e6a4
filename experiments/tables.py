"""Results in experiments/README.md: python -m experiments.tables

Every experiment writes its tables as Markdown beside its CSV files. Here they are put into
experiments/README.md, each between its two marks

    <!-- NAME: measured by a command -->
    <!-- end of NAME -->

and the figures that the README shows are copied to docs/. What has no result in runs/ stays as
it is, and is named.
"""

import csv
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.files import write_text

README = Path(__file__).parent / "README.md"
TABLE = re.compile(
    r"(<!-- (?P<name>\w+): measured by a command -->\n).*?(<!-- end of (?P=name) -->)",
    re.DOTALL,
)
FIGURE = re.compile(r"!\[[^]]*\]\(\.\./docs/(\w+)\.png\)")


def write_csv(rows: Sequence[Any], path: Path) -> None:
    """Writes rows of one named tuple, its fields as header, numbers to six digits."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        writer.writerows(
            [f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in rows
        )


def write_markdown(folder: Path, name: str, header: Sequence[str], rows: Sequence[Any]) -> None:
    """Writes a table as folder/NAME.md: text in its first column, numbers in the others."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    write_text(folder / f"{name}.md", text)


def fill(text: str, runs: Path) -> tuple[str, list[str]]:
    """(`text` with the tables found in the folders of `runs`, names of those not found)."""
    missing = []

    def filled(match: re.Match[str]) -> str:
        found = sorted(runs.glob(f"*/{match['name']}.md"))
        if not found:
            missing.append(match["name"])
            return match[0]
        return f"{match[1]}{found[0].read_text()}{match[3]}"

    return TABLE.sub(filled, text), missing


def copy_figures(text: str, runs: Path, docs: Path) -> list[str]:
    """Copies the figures that `text` shows, where an experiment drew them; returns their names."""
    copied = []
    for name in FIGURE.findall(text):
        drawn = [p for p in (runs / name / f"{name}.png", runs / name / "report.png") if p.exists()]
        if drawn:
            shutil.copy(drawn[0], docs / f"{name}.png")
            copied.append(name)
    return copied


def main() -> None:
    parser = command_parser("experiments.tables", __doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="what experiments wrote")
    arguments = parser.parse_args()
    text, missing = fill(README.read_text(), arguments.runs)
    write_text(README, text)
    copied = copy_figures(text, arguments.runs, README.parents[1] / "docs")
    print(f"written: {README.name}; figures in docs: {', '.join(copied) or 'none'}")
    if missing:
        print(f"without a result in {arguments.runs}: {', '.join(missing)}")


if __name__ == "__main__":
    run(main)
