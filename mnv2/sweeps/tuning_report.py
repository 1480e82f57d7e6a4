"""What tuning found: a table, sentences, and a figure of accuracy against the tuned value."""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
from matplotlib.axes import Axes

from mnv2.runtime.errors import UserError, reason
from mnv2.runtime.files import AnyPath, replacing, write_text
from mnv2.runtime.layout import TUNING
from mnv2.runtime.terminal import drawn
from mnv2.sweeps.tables import markdown_lines
from mnv2.sweeps.tuning import Choice

COLUMNS = 3  # of panels
SHOWN = 20.0  # points below the best accuracy, where the panels end


def write_tuning(field: str, choices: Mapping[str, Choice], workdir: AnyPath) -> None:
    """Prints what tuning found, and writes it to tuning.md and tuning.png in `workdir`."""
    lines = table(choices)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    print(f"\n{field} against accuracy on validation, in per cent:\n")
    for cells in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)))
    said = sentences(field, choices)
    print(f"\n{said}\n")
    try:
        write_text(workdir / f"{TUNING}.md", "\n".join([*markdown_lines(lines), "", said, ""]))
        _draw(field, choices, workdir / f"{TUNING}.png")
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {reason(error)}") from error
    print(f"tuning    {workdir}/{TUNING}.md, {TUNING}.png")


def table(choices: Mapping[str, Choice]) -> list[list[str]]:
    """Returns a header and one row per arm: its accuracies, and the value that was chosen."""
    values = list(next(iter(choices.values())).found)
    rows = [["arm", *(f"{value:g}" for value in values), "chosen"]]
    for arm, choice in choices.items():
        accuracies = ("not finite" if x is None else f"{x.mean:.2f}" for x in choice.found.values())
        rows.append([arm, *accuracies, f"{choice.value:g}"])
    return rows


def sentences(field: str, choices: Mapping[str, Choice]) -> str:
    """Says what was chosen, and for which arms a better value may lie beyond those tried."""
    seeds = max(one.count for choice in choices.values() for one in choice.found.values() if one)
    said = [
        f"For each arm, {field} was chosen on validation, by the mean of {seeds} "
        f"seed{'s' * (seeds > 1)} which the comparison does not use: "
        + ", ".join(f"{arm} {choice.value:g}" for arm, choice in choices.items())
        + "."
    ]
    for end, direction in (("smallest", "below"), ("largest", "above")):
        if arms := [arm for arm, choice in choices.items() if choice.end == end]:
            said.append(
                f"The value of {', '.join(arms)} is the {end} that was tried: a better one may lie "
                f"{direction} it."
            )
    return " ".join(said)


def _draw(field: str, choices: Mapping[str, Choice], path: AnyPath) -> None:
    """Draws one panel per arm, with the curves of all other arms in grey behind it."""
    lines = math.ceil(len(choices) / COLUMNS)
    columns = min(COLUMNS, len(choices))
    width = max(8, 4 * columns)
    figure = matplotlib.figure.Figure(figsize=(width, 3.2 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    means = [x.mean for choice in choices.values() for x in choice.found.values() if x is not None]
    floor = max(min(means) - 1, max(means) - SHOWN)
    axes[0, 0].set_ylim(floor, max(means) + 1)
    for axis, (arm, choice) in zip(axes.flatten(), choices.items(), strict=False):
        for other in choices.values():
            _draw_curve(axis, other, color="0.8", linewidth=1)
        _draw_curve(axis, choice, color="black", marker="o", markerfacecolor="white")
        axis.axvline(choice.value, color="0.4", linewidth=0.8, linestyle=":")
        for value, one in choice.found.items():
            if one is not None and one.mean < floor:
                axis.annotate(
                    f"{one.mean:.0f} %",
                    (value, floor),
                    (0, 4),
                    textcoords="offset points",
                    ha="center",
                )
        best = choice.found[choice.value]
        assert best is not None
        axis.plot(choice.value, best.mean, "s", color="black", markersize=8)
        end = f", the {choice.end} tried" if choice.end else ""
        axis.set_title(f"{drawn(arm)}: {choice.value:g}{end}", fontsize="medium")
    for axis in axes.flatten()[len(choices) :]:
        axis.set_visible(False)
    values = list(next(iter(choices.values())).found)
    if min(values) > 0:
        axes[0, 0].set_xscale("log")
    axes[0, 0].set_xticks(values, [f"{value:g}" for value in values])
    axes[0, 0].minorticks_off()
    for column in range(columns):
        lowest = max(i for i in range(lines) if axes[i, column].get_visible())
        axes[lowest, column].set_xlabel(drawn(field))
        axes[lowest, column].tick_params(labelbottom=True)
    for row in axes:
        row[0].set_ylabel("validation top-1 accuracy, %")
    gap = " " if columns == COLUMNS else "\n"  # a narrow figure has room for two lines
    figure.suptitle(
        "Squares: the value that was chosen. Grey: the curves of the other arms."
        f"{gap}Numbers at the bottom: below the panel. Without a point: the loss did not stay "
        "finite",
        fontsize="medium",
    )
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def _draw_curve(axis: Axes, choice: Choice, **style: Any) -> None:
    points = [(value, one.mean) for value, one in choice.found.items() if one is not None]
    axis.plot([value for value, _ in points], [mean for _, mean in points], **style)
