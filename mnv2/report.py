"""Finished runs -> a table with confidence intervals, and a figure: python -m mnv2.report WORKDIR

Written to WORKDIR: report.md, report.csv, report.png, and the figure for TensorBoard. The report
can be made at any time; what is not finished yet is left out, and named.
"""

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from mnv2.runtime.cli import command_parser
from mnv2.runtime.cli import run as run_command
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_text
from mnv2.sweeps import figure

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds and the half-width of its 95 % interval; None from a single seed."""

    mean: float
    half_width: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate | None":
        """Student's t interval of the mean; None of nothing."""
        if not values:
            return None
        mean, count = float(np.mean(values)), len(values)
        if count == 1:
            return cls(mean, None, 1)
        error = float(np.std(values, ddof=1)) / count**0.5
        return cls(mean, error * float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)), count)


@dataclasses.dataclass(frozen=True)
class Row:
    """What the report says of one arm. Accuracies and differences are in per cent."""

    arm: str
    parameters: int
    multiply_adds: int
    accuracy: Estimate
    difference: Estimate | None
    images_per_second: float
    minutes: float


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A workdir as it stands: its config, and the results by arm and seed."""

    workdir: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    results: dict[str, dict[int, dict[str, Any]]]

    @property
    def baseline(self) -> str:
        return self.config["baseline"]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """What each arm changes of the config."""
        return dict(self.config["arms"])

    def accuracies(self, arm: str) -> dict[int, float]:
        """Test accuracy by seed, in per cent, of what is finished of an arm."""
        runs = self.results.get(arm, {})
        return {seed: 100 * result["test"]["accuracy"] for seed, result in runs.items()}

    def rows(self) -> list[Row]:
        """One for each arm that has a finished run, in the order of the config."""
        return [self._row(arm) for arm, runs in self.results.items() if runs]

    def missing(self) -> list[str]:
        """The arms and seeds that the config names and that are not finished."""
        return [f"{arm}/{seed}" for arm, seed in self.runs() if seed not in self.results[arm]]

    def runs(self) -> list[tuple[str, int]]:
        """The arms and seeds that the config names."""
        return [(arm, seed) for arm, changes in self.arms.items() for seed in self._seeds(changes)]

    def _seeds(self, changes: dict[str, Any]) -> range:
        first = self.config["seed"]
        return range(first, first + changes.get("seeds", self.config["seeds"]))

    def _row(self, arm: str) -> Row:
        runs, accuracies = self.results[arm], self.accuracies(arm)
        accuracy = Estimate.of(list(accuracies.values()))
        assert accuracy is not None
        # Two arms with one seed share initial values and order of data where shapes agree, so
        # the difference within a seed varies less than either.
        baseline = self.accuracies(self.baseline) if arm != self.baseline else {}
        difference = Estimate.of(
            [accuracies[seed] - baseline[seed] for seed in accuracies if seed in baseline]
        )
        first = next(iter(runs.values()))
        return Row(
            arm,
            first["parameters"],
            first["multiply_adds"],
            accuracy,
            difference,
            float(np.median([result["images_per_second"] for result in runs.values()])),
            sum(result["train_seconds"] for result in runs.values()) / 60,
        )


def load(workdir: Path) -> Sweep:
    """Reads what is finished in `workdir`. Raises UserError if it is no workdir."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise UserError(f"{workdir} is not the --workdir of any runs: it has no {path.name}")
    description = json.loads(path.read_text())
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in dict(description["config"]["arms"]):
        folders = sorted((workdir / arm).glob("*/result.json"), key=lambda p: int(p.parent.name))
        results[arm] = {int(p.parent.name): json.loads(p.read_text()) for p in folders}
    return Sweep(workdir, description["config"], description["environment"], results)


def write(workdir: Path) -> None:
    """Prints the table of what is finished; writes it, as Markdown and CSV, and the figure."""
    sweep = load(workdir)
    rows = sweep.rows()
    if not rows:
        raise UserError(f"no run in {workdir} is finished yet")
    print(f"\n{_terminal_table(rows)}\n")
    if missing := sweep.missing():
        print(f"not finished: {', '.join(missing)}\n")
    write_text(workdir / "report.md", _markdown(sweep, rows))
    write_text(workdir / "report.csv", _csv(rows))
    figure.draw(sweep, rows, workdir / "report.png")
    figure.to_tensorboard(workdir / "report.png", workdir / "report")
    print(f"report    {workdir}/report.md, report.csv, report.png")
    print(f"curves    tensorboard --logdir {workdir}")


HEADER = ("arm", "params", "MAdds", "test top-1 %", "difference", "seeds", "images/s", "min")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.arm,
        f"{row.parameters / 1e6:.2f} M",
        f"{row.multiply_adds / 1e6:.2f} M",
        plus_minus(row.accuracy),
        plus_minus(row.difference, sign="+"),
        str(row.accuracy.count),
        f"{row.images_per_second:,.0f}",
        f"{row.minutes:.1f}",
    )


def plus_minus(estimate: Estimate | None, sign: str = "") -> str:
    """84.20 ± 0.31; with `sign` "+", +0.42 ± 0.10; nothing for None."""
    if estimate is None:
        return ""
    mean = f"{estimate.mean:{sign}.2f}"
    return mean if estimate.half_width is None else f"{mean} ± {estimate.half_width:.2f}"


def _terminal_table(rows: Sequence[Row]) -> str:
    table = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(cells[i]) for cells in table) for i in range(len(HEADER))]
    lines = [
        " ".join(
            cell.ljust(width) if i in (0, 3, 4) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _markdown(sweep: Sweep, rows: Sequence[Row]) -> str:
    lines = [f"| {' | '.join(HEADER)} |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(_cells(row))} |" for row in rows]
    data, environment = sweep.config["data"]["name"], sweep.environment
    notes = [
        f"{data}, {sweep.config['duration']}, batch {sweep.config['batch_size']}. "
        f"± is the half-width of a 95 % interval (Student's t over seeds). The difference is to "
        f"`{sweep.baseline}`, paired by seed. Minutes are of training, all seeds together.",
        f"{', '.join(environment['devices'])} ({environment['machine']}), JAX "
        f"{environment['packages']['jax']}, commit {environment['commit']}.",
    ]
    if missing := sweep.missing():
        notes.append(f"Not finished: {', '.join(missing)}.")
    return "\n".join([*lines, "", *("\n\n".join(notes).splitlines()), ""])


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = "arm parameters multiply_adds accuracy accuracy_ci95 difference difference_ci95"
    writer.writerow([*names.split(), "seeds", "images_per_second", "minutes"])
    for row in rows:
        writer.writerow(
            [
                *(row.arm, row.parameters, row.multiply_adds),
                *(row.accuracy.mean, row.accuracy.half_width),
                *((row.difference.mean, row.difference.half_width) if row.difference else ("", "")),
                *(row.accuracy.count, row.images_per_second, row.minutes),
            ]
        )
    return text.getvalue()


def main() -> None:
    parser = command_parser("mnv2.report", __doc__)
    parser.add_argument("workdir", metavar="WORKDIR", type=Path)
    write(parser.parse_args().workdir)


if __name__ == "__main__":
    run_command(main)
