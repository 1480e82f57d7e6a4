"""Fills the measured tables into the pages: python -m experiments.tables

This command puts the tables that experiments have written to runs/ into RESULTS.md of paper/ or
speed/, or into a page of docs, each between its two markers

    <!-- NAME: measured by a command -->
    <!-- end of NAME -->

and copies the figures that these pages show to docs/. Those without a result in runs/ stay as they
are. The names of these tables are printed.
"""

import re
import shutil
from pathlib import Path

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.files import write_text

FOLDER = Path(__file__).parent
DOCS = FOLDER.parent / "docs"
RUNS = Path("runs")
PAGES = (
    *(FOLDER / name / "RESULTS.md" for name in ("paper", "speed")),
    *(DOCS / f"{name}.md" for name in ("accelerators", "gpu_limits", "recipes", "ablations")),
)
TABLE = re.compile(
    r"(<!-- (?P<name>\w+): measured by a command -->\n).*?(<!-- end of (?P=name) -->)", re.DOTALL
)
FIGURE = re.compile(r"!\[[^]]*\]\((?:[./]+docs/)?(\w+)\.(png|jpg)\)")


def fill(text: str, runs: Path) -> tuple[str, list[str]]:
    """Returns `text` with the tables in the folders of `runs`, and the names of those not found."""
    missing = []

    def filled(match: re.Match[str]) -> str:
        found = sorted(runs.glob(f"*/{match['name']}.md"))
        if not found:
            missing.append(match["name"])
            return match[0]
        return f"{match[1]}{found[0].read_text()}{match[3]}"

    return TABLE.sub(filled, text), missing


def copy_figures(text: str, runs: Path, docs: Path) -> list[str]:
    """Copies the figures that `text` shows from `runs` to `docs`, and returns their names."""
    copied = {}
    for name, kind in FIGURE.findall(text):
        for path in (runs / name / f"report.{kind}", runs / name / f"{name}.{kind}"):
            if path.exists():
                copied[name] = shutil.copy(path, docs / f"{name}.{kind}")
    return list(copied)


def main() -> None:
    command_parser("experiments.tables", __doc__).parse_args()
    missing, copied = [], []
    for page in PAGES:
        text, without = fill(page.read_text(), RUNS)
        write_text(page, text)
        missing += without
        copied += copy_figures(text, RUNS, DOCS)
    print(f"written: {len(PAGES)} pages; figures in docs: {', '.join(copied) or 'none'}")
    if missing:
        print(f"without a result in {RUNS}: {', '.join(missing)}")


if __name__ == "__main__":
    run(main)
