"""The report of a sweep: a table, for the terminal, as Markdown and as CSV, and a figure."""

import csv
import io
from collections.abc import Sequence

from mnv2.runtime.errors import RunsFailed, UserError, reason
from mnv2.runtime.files import AnyPath, write_text
from mnv2.runtime.layout import FAILURE, REPORT
from mnv2.runtime.terminal import first_few
from mnv2.sweeps import figure, workdir
from mnv2.sweeps.statistics import Estimate, Row, Simultaneous, compare_all, rows
from mnv2.sweeps.workdir import Sweep

COLUMNS = 6  # of the table in a terminal; the Markdown table also has the last two
NOTED = ("data.name", "duration", "batch_size")  # fields that the note says of all arms
FEWEST_STEPS = 100  # of a run that says anything: the learning rate has hardly left the warm-up
TEXT_COLUMNS = (0, 3, 4)  # aligned to the left in a terminal


def write_report(folder: AnyPath, asked: Sequence[str] | None = None) -> None:
    """Prints the table of the finished runs in `folder`; writes report.md, .csv and .png there.

    Prints which of the runs that a command was `asked` for (default: all) are not finished. A
    figure of one arm would show nothing, and is left out.

    Raises UserError if no run is finished, and if the files cannot be written.
    """
    sweep = workdir.load(folder)
    simultaneous = compare_all(sweep)
    finished = rows(sweep, simultaneous)
    if not finished:
        raise UserError(f"no run in {folder} is finished yet")
    print(f"\n{terminal_table(sweep, finished)}\n")
    for line in _explanations(sweep, finished):
        print(f"{line}\n")
    if missing := [name for name in sweep.missing() if asked is None or name in asked]:
        print(f"not finished: {first_few(missing)}\n")
    try:
        write_text(folder / f"{REPORT}.md", markdown(sweep, finished, simultaneous))
        write_text(folder / f"{REPORT}.csv", to_csv(finished))
        image = folder / f"{REPORT}.png"
        if len(finished) > 1:
            figure.draw(sweep, finished, image)
            figure.write_to_tensorboard(image, folder / REPORT)
    except OSError as error:
        raise UserError(f"cannot write the report to {folder}: {reason(error)}") from error
    drawn = f", {image.name}" if len(finished) > 1 else ""
    print(f"report    {folder}/{REPORT}.md, {REPORT}.csv{drawn}")
    print(f"curves    tensorboard --logdir {folder}")


def finish(folder: AnyPath, failed: Sequence[str], asked: Sequence[str], *, reports: bool) -> None:
    """Writes the report, if it is wanted and any run is finished.

    Raises RunsFailed if any run failed. Why was said when it failed.
    """
    if reports and any(workdir.load(folder).results.values()):
        write_report(folder, asked)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of the runs failed: {first_few(failed)}; why is said above, and "
            f"with any traceback in {folder / failed[0] / FAILURE}"
        )


def plus_minus(estimate: Estimate | None, sign: str = "") -> str:
    """Formats an estimate: 84.20 ± 0.31; with `sign` "+", +0.42 ± 0.10; nothing for None."""
    if estimate is None:
        return ""
    return with_half_width(estimate.mean, estimate.half_width, sign=sign)


def with_half_width(
    mean: float, half_width: float | None, *, digits: int = 2, sign: str = ""
) -> str:
    """Formats a mean and, if there is one, the half-width of its interval."""
    text = f"{mean:{sign}.{digits}f}"
    return text if half_width is None else f"{text} ± {half_width:.{digits}f}"


def header(split: str) -> tuple[str, ...]:
    """Returns the titles of the columns, for accuracies on a split."""
    accuracy = f"{split} top-1 %"
    return ("arm", "params", "MAdds", accuracy, "difference", "seeds", "min", "images/s")


def terminal_table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Formats rows for a terminal of 80 columns."""
    table = [cells[:COLUMNS] for cells in (header(sweep.split), *(_cells(row) for row in rows))]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        " ".join(
            cell.ljust(width) if i in TEXT_COLUMNS else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown_lines(table: Sequence[Sequence[str]]) -> list[str]:
    """Formats a header and rows as Markdown: text in the first column, numbers in the others."""
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return [lines[0], f"|---{'|--:' * (len(table[0]) - 1)}|", *lines[1:]]


def markdown(sweep: Sweep, rows: Sequence[Row], simultaneous: Simultaneous | None) -> str:
    """Formats rows as Markdown, with notes on how they were measured."""
    lines = markdown_lines([header(sweep.split), *map(_cells, rows)])
    data = sweep.config["data"]["name"]
    notes = [
        f"{data}, {sweep.config['duration']}, batch {sweep.config['batch_size']}. "
        "± is the half-width of a 95 % interval: of an accuracy, Student's t over three seeds or "
        "more; of differences, Dunnett's, which hold for all arms at once, with one spread for all "
        "arms. Minutes are of training, of all seeds; images/s are those of one run.",
        *_explanations(sweep, rows),
        *_power(simultaneous),
        *_changes(sweep, rows),
    ]
    if missing := sweep.missing():
        notes.append(f"Not finished: {first_few(missing, 8)}.")
    if sweep.damaged:
        notes.append(f"Left out, because the result is damaged: {', '.join(sweep.damaged)}.")
    return "\n".join([*lines, "", *("\n\n".join(notes).splitlines()), ""])


def to_csv(rows: Sequence[Row]) -> str:
    """Formats rows as CSV, with all digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = "arm parameters multiply_adds accuracy accuracy_ci95 difference difference_ci95"
    writer.writerow([*names.split(), "seeds", "images_per_second", "minutes"])
    for row in rows:
        writer.writerow(
            [
                *(row.arm, row.parameters, row.multiply_adds),
                *(row.accuracy.mean, row.accuracy.half_width),
                *_both(row.difference),
                *(row.accuracy.count, row.images_per_second, row.minutes),
            ]
        )
    return text.getvalue()


def _both(estimate: Estimate | None) -> tuple[float | None, float | None]:
    return (estimate.mean, estimate.half_width) if estimate else (None, None)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.arm,
        f"{row.parameters / 1e6:.2f} M",
        f"{row.multiply_adds / 1e6:.2f} M",
        plus_minus(row.accuracy),
        plus_minus(row.difference, sign="+"),
        str(row.accuracy.count),
        f"{row.minutes:.1f}",
        "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
    )


def _explanations(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Says how differences are computed, and if the runs are too short to mean anything."""
    said = []
    if any(row.difference for row in rows):
        said.append(
            f"difference: to {sweep.baseline}, of the means of all seeds; ± for all arms at once"
        )
    if steps := [sweep.steps[row.arm] for row in rows if row.arm in sweep.steps]:
        if max(steps) < FEWEST_STEPS:
            said.append(f"{max(steps)} steps say nothing about the arms: only that all works")
    return said


def _power(simultaneous: Simultaneous | None) -> list[str]:
    """Says how large a difference must be to be found with these seeds."""
    if simultaneous is None:
        return []
    sizes = (
        f"{size:.1f} points with {seeds} seeds" for seeds, size in simultaneous.detectable.items()
    )
    return [
        "With all arms compared at once, a difference is found in four of five such experiments "
        f"if it is {', '.join(sizes)}."
    ]


def _changes(sweep: Sweep, rows: Sequence[Row]) -> list[str]:
    """Says what arms change that differ from the baseline in several fields, or from the note."""
    of_baseline = sweep.arms[sweep.baseline]
    said = []
    for arm in (row.arm for row in rows):
        own = sweep.arms[arm]
        fields = [name for name in {**own, **of_baseline} if name != "seeds"]
        changed = {
            name: sweep.value(arm, name)
            for name in fields
            if sweep.value(arm, name) != sweep.value(sweep.baseline, name)
        }
        if len(changed) > 1 or any(name in NOTED for name in changed):
            said.append(f"{arm}: {', '.join(f'{k} {v}' for k, v in changed.items())}.")
    return said
