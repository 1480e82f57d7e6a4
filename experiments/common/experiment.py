"""What every experiment has: its options, its start, and the tables of results that it writes."""

import argparse
import csv
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mnv2.runtime.cli import command_parser, real_number, whole_number
from mnv2.runtime.cli import run as run
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_text
from mnv2.runtime.terminal import StatusLine, warn

OPTIONS: dict[str, tuple[Callable[[str], Any], str]] = {
    "rounds": (whole_number(), "turns of each"),
    "seconds": (real_number(), "least length of a turn"),
    "steps": (whole_number(), "training steps of each run"),
    "seeds": (whole_number(), "runs of each arm"),
    "draws": (whole_number(), "repetitions with new random choices"),
    "pairs": (whole_number(), "pairs of blocks, with a checkpoint and without"),
    "size": (whole_number(), "pixels"),
    "batch": (whole_number(), "images of a step"),
    "workdir": (Path, "folder of the runs"),
}


def experiment_parser(
    file: str,
    description: str | None,
    folder: str = "out",
    default: str = "",
    /,
    **defaults: float | str,
) -> argparse.ArgumentParser:
    """Returns the parser of the experiment in `file`, with an option for the folder it writes to.

    `folder` is the name of this option, and `default` its default: runs/NAME unless it is given.
    `defaults` has the other options, of OPTIONS.
    """
    path = Path(file)
    parser = command_parser(f"experiments.{path.parent.name}.{path.stem}", description)
    for name, value in defaults.items():
        convert, text = OPTIONS[name]
        help_text = f"{text} (default: {value})"
        parser.add_argument(f"--{name}", type=convert, default=value, help=help_text)
    default = default or f"runs/{path.stem}"
    help_text = f"what is written (default: {default})"
    parser.add_argument(f"--{folder}", type=Path, default=default, help=help_text)
    return parser


def tried[Result](label: str, attempts: Mapping[str, Callable[[], Result]]) -> Iterator[Result]:
    """Yields what each attempt returns; one that raises UserError is left out, with a warning."""
    line = StatusLine(label)
    for number, (name, attempt) in enumerate(attempts.items(), start=1):
        line.say(f"{number} of {len(attempts)}: {name}")
        try:
            result = attempt()
        except UserError as error:
            line.clear()
            warn(str(error))
            continue
        line.clear()
        yield result


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
