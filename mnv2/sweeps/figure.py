"""The figure of a report: one panel per ablation, and accuracy against cost."""

import contextlib
import math
import struct
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib.figure
import numpy as np
from matplotlib.axes import Axes

from mnv2.runtime import events
from mnv2.runtime.files import AnyPath, matches, replacing
from mnv2.runtime.terminal import drawn
from mnv2.sweeps.statistics import Row, prediction_interval
from mnv2.sweeps.workdir import Sweep

CURVES: tuple[dict[str, Any], ...] = (
    {"marker": "o", "linestyle": "-"},
    {"marker": "^", "linestyle": "--"},
    {"marker": "D", "linestyle": ":"},
)
WIDTH = 12.0  # of the figure, in inches
BASELINE_COLOR, ARM_COLOR, BAND_COLOR = "black", "#3b6ea5", "0.9"


def draw(sweep: Sweep, rows: Sequence[Row], path: AnyPath) -> None:
    """Draws accuracy, with 95 % intervals, against the field that each panel varies.

    Of the panels, those with two rows or more; if there is none, one with all rows.
    """
    by_arm = {row.arm: row for row in rows}
    panels = [panel for panel in sweep.config["panels"] if len(set(panel[2]) & by_arm.keys()) > 1]
    panels = panels or [("arms", "arm", tuple(by_arm))]
    curves = _costs(sweep, by_arm)
    shown = len(panels) + bool(curves)
    columns = min(shown, 3)
    lines = math.ceil(shown / columns)
    width = WIDTH if shown > 1 else max(WIDTH, 0.8 * len(panels[0][2]))  # 0.8 for each arm's name
    figure = matplotlib.figure.Figure(figsize=(width, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axis, (title, field, arms) in zip(axes, panels, strict=False):
        shown_rows = [by_arm[arm] for arm in arms if arm in by_arm]
        _draw_panel(axis, sweep, title, field, shown_rows, width / columns)
    if curves:
        _draw_costs(axes[len(panels)], sweep, curves)
    for axis in axes[shown:]:
        axis.set_visible(False)
    for axis in axes[::columns]:
        axis.set_ylabel(f"{sweep.split} top-1 accuracy, %")
    bars = any(row.accuracy.half_width is not None for row in rows)
    bar = " Bars: 95 % intervals, from three seeds on." if bars else ""
    two = " Dots: two seeds." if any(row.accuracy.count == 2 for row in rows) else ""
    band = ""
    if prediction_interval(list(sweep.accuracies(sweep.baseline).values())):
        band = (
            f" Grey: where one more run of the baseline, {drawn(sweep.baseline)}, would fall (95 %)"
        )
    figure.suptitle(
        f"{drawn(sweep.config['data']['name'])}, {sweep.config['duration']}.{bar}{two}{band}",
        fontsize="medium",
    )
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format=path.suffix.removeprefix("."))


def write_to_tensorboard(image: AnyPath, folder: AnyPath) -> None:
    """Writes the figure as an image to `folder`, in place of an earlier one."""
    for old in matches(folder, events.PATTERN):
        old.unlink(missing_ok=True)  # another process may write a report too
    folder.mkdir(parents=True, exist_ok=True)
    png = image.read_bytes()
    width, height = struct.unpack(">II", png[16:24])  # of the header of every PNG
    with contextlib.closing(events.EventFile(folder)) as file:
        file.images(0, "report", [png], (height, width))


def _draw_panel(
    axis: Axes, sweep: Sweep, title: str, field: str, rows: Sequence[Row], inches: float
) -> None:
    values = [_value(sweep, row.arm, field) for row in rows]
    positions: list[Any] = list(range(len(rows)))
    if all(isinstance(value, int | float) for value in values):
        rows = sorted(rows, key=lambda row: _value(sweep, row.arm, field))
        positions = values = sorted(values)
        axis.plot(positions, [row.accuracy.mean for row in rows], color=ARM_COLOR, zorder=1)
        axis.set_xticks(positions, [f"{value:g}" for value in values])
    else:
        size = min(10.0, max(5.0, 10 * inches / (0.85 * len(rows))))  # names do not overlap
        names = [drawn(value).replace("_", "\n").replace("@", "\n@ ") for value in values]
        axis.set_xticks(positions, names, fontsize=size)
        axis.set_xlim(-0.6, len(rows) - 0.4)
    for position, row in zip(positions, rows, strict=True):
        _draw_point(axis, position, row, row.arm == sweep.baseline)
        if row.accuracy.half_width is None and row.accuracy.count > 1:
            seeds = list(sweep.accuracies(row.arm).values())
            axis.scatter([position] * len(seeds), seeds, s=10, color=ARM_COLOR, zorder=3)
    _draw_band(axis, sweep)
    axis.set_title(drawn(title))
    axis.set_xlabel(drawn(field))


def _costs(sweep: Sweep, rows: Mapping[str, Row]) -> dict[str, list[Row]]:
    """Returns the arms of each panel along whose field the multiply-adds grow, by its title."""
    curves = {}
    for title, field, arms in sweep.config["panels"]:
        finished = [rows[arm] for arm in arms if arm in rows]
        numeric = all(isinstance(_value(sweep, row.arm, field), int | float) for row in finished)
        curve = sorted(finished, key=lambda row: row.multiply_adds)
        # Widths are rounded, so arms of equal cost differ by a few per cent.
        if numeric and curve and curve[-1].multiply_adds > 1.1 * curve[0].multiply_adds:
            curves[title] = curve
    return curves


def _draw_costs(axis: Axes, sweep: Sweep, curves: Mapping[str, Sequence[Row]]) -> None:
    """Draws for what multiply-adds are best spent: a curve for each field that makes them grow."""
    for (title, rows), style in zip(curves.items(), cycle(CURVES), strict=False):
        costs = [row.multiply_adds / 1e6 for row in rows]
        means = [row.accuracy.mean for row in rows]
        axis.plot(
            costs, means, **style, color=ARM_COLOR, markerfacecolor="white", label=drawn(title)
        )
    _draw_band(axis, sweep)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_title("cost")
    axis.set_xlabel("million multiply-adds per image")
    axis.legend()


def _draw_point(axis: Axes, position: float, row: Row, is_baseline: bool) -> None:
    axis.errorbar(
        position,
        row.accuracy.mean,
        yerr=row.accuracy.half_width,
        fmt="s" if is_baseline else "o",
        color=BASELINE_COLOR if is_baseline else ARM_COLOR,
        markerfacecolor=BASELINE_COLOR if is_baseline else "white",
        capsize=4,
        zorder=3 if is_baseline else 2,
    )


def _draw_band(axis: Axes, sweep: Sweep) -> None:
    """Shades where one more run of the baseline would fall: the measure for arms with one seed."""
    accuracies = list(sweep.accuracies(sweep.baseline).values())
    if not accuracies:
        return
    axis.axhline(np.mean(accuracies), color=BASELINE_COLOR, linewidth=0.8, linestyle=":")
    if interval := prediction_interval(accuracies):
        axis.axhspan(*interval, color=BAND_COLOR, zorder=0)


def _value(sweep: Sweep, arm: str, field: str) -> Any:
    """Returns the value of `field` in an arm; the arm's name if the field is `arm`."""
    return arm if field == "arm" else sweep.value(arm, field)
