"""Are the published parameters and multiply-adds right? Counts the networks of every published row.

Everything is counted from the traced networks of mnv2.models. Writes the rows to complexity.csv,
and draws the published accuracy against the counted multiply-adds, like figure 5 of the V2 paper.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure

from experiments.common import published
from experiments.common.table import Table, write_csv
from mnv2.analysis import complexity
from mnv2.models import create_model
from mnv2.runtime.cli import command_parser, run

# All V1 rows are published for slim's 1001 classes, the V2 rows without the background class.
CLASSES = {"mobilenet_v1": 1001, "mobilenet_v2": 1000}

# Why the printed number of a row differs from all counts of the network.
REASONS = {
    ("V2 table 4", 1.4): "6.9 M fits no count; 1.4^2 x 3.5 M = 6.87 M, so perhaps it was scaled",
    ("V2 table 4", 1.0): "V1's own paper says 569 M",
    ("slim V1", 0.75): "the V1 paper's 325 M is right",
    ("slim V1", 0.25): "34 M at 192: the other three resolutions are right",
}


class Row(NamedTuple):
    """A printed row and the counts of its network; costs are in millions."""

    table: str
    network: str
    width: float
    resolution: int
    printed_multiply_adds: float
    multiply_adds: float
    printed_parameters: float
    parameters: float  # all trainable ones, with batch norm and biases
    weights: float  # of convolutions and classifier only, as slim counts

    def agrees(self) -> bool:
        """Whether the printed costs are the counted ones, rounded up or down as printed."""
        unit = 10 ** -len(f"{self.printed_parameters:g}".partition(".")[2])
        closest = min(abs(x - self.printed_parameters) for x in (self.parameters, self.weights))
        return closest < unit and abs(self.multiply_adds - self.printed_multiply_adds) < 1


def rows() -> list[Row]:
    """Counts the network of every published row."""
    of_slim = [
        (f"slim {network.removeprefix('mobilenet_').upper()}", network, *row[:4])
        for network, checkpoints in published.CHECKPOINTS.items()
        for row in checkpoints
    ]
    return [_count(*row) for row in (*published.PAPERS, *of_slim)]


def _count(
    table: str, network: str, width: float, side: int, multiply_adds: float, parameters: float
) -> Row:
    model = create_model(network, width=width, num_classes=CLASSES[network])
    madds, trainable, weights = (
        count(model, (side, side, 3)) / 1e6
        for count in (complexity.multiply_adds, complexity.parameters, complexity.weights)
    )
    return Row(table, network, width, side, multiply_adds, madds, parameters, trainable, weights)


def print_rows(counted: Sequence[Row]) -> None:
    """Prints the published and counted costs side by side, and why some differ."""
    lines = [
        (
            *(row.table, f"{row.network} {row.width:g}", row.resolution),
            *(f"{row.multiply_adds:.2f}", f"{row.printed_multiply_adds:g}"),
            *(f"{row.parameters:.3f}", f"{row.weights:.3f}", f"{row.printed_parameters:g}"),
        )
        for row in counted
    ]
    header = (
        *("table", "network", "pixels", "MAdds, M", "printed"),
        *("parameters, M", "weights, M", "printed"),
    )
    print(Table("complexity", header, lines))
    differing = [row for row in counted if not row.agrees()]
    print(f"\n{len(counted) - len(differing)} of {len(counted)} rows agree. The others:")
    for row in differing:
        print(f"  {row.table}, {row.network} {row.width:g} at {row.resolution}: {reason(row)}")


def reason(row: Row) -> str:
    """Returns why the printed number of a row is not the counted one, or "not known"."""
    return REASONS.get((row.table, row.width), "not known")


def draw(counted: Sequence[Row], path: Path) -> None:
    """Draws published top-1 accuracy against counted multiply-adds, one line per width."""
    figure = matplotlib.figure.Figure(figsize=(8, 5.2), layout="constrained")
    axis = figure.subplots()
    for network, color, style in (("mobilenet_v2", "k", "-"), ("mobilenet_v1", "#3b6ea5", "--")):
        costs = {row[2:4]: row.multiply_adds for row in counted if row.network == network}
        table = published.CHECKPOINTS[network]
        for width, marker in zip(sorted({row.width for row in table}), "ovs^Dp", strict=False):
            points = [row for row in table if row.width == width]
            axis.plot(
                [costs[row[:2]] for row in points],
                [row.top1 for row in points],
                color=color,
                linestyle=style,
                marker=marker,
                markerfacecolor=color if network == "mobilenet_v2" else "w",
                label=f"{network.replace('mobilenet_v', 'V')} x {width:g}",
            )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("million multiply-adds per image (counted)")
    axis.set_ylabel("ImageNet top-1 accuracy, % (as published by slim)")
    axis.set_title("MobileNetV1 and V2 by width and resolution")
    axis.grid(alpha=0.3)
    axis.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = command_parser("experiments.paper.complexity", __doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="(default: docs)")
    out = parser.parse_args().out
    counted = rows()
    print_rows(counted)
    records = [{**row._asdict(), "agrees": row.agrees()} for row in counted]
    write_csv(records, out / "complexity.csv")
    draw(counted, out / "complexity.png")
    print(f"\nin {out}: complexity.csv, complexity.png")


if __name__ == "__main__":
    run(main)
