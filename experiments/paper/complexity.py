"""Are the published parameters and multiply-adds right? Counts the networks of every published row.

Everything is counted from the traced networks of mnv2.models. Prints the rows that differ, writes
all rows to complexity.csv, and draws the published accuracy against the counted multiply-adds, like
figure 5 of the V2 paper.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.figure

from experiments.common.experiment import Table, experiment_parser, run, write_csv
from mnv2.analysis import complexity
from mnv2.models import create_model

# The papers' tables: network, width, resolution, and millions of multiply-adds and parameters.
PAPERS = (
    ("V2 table 4", "mobilenet_v2", 1.0, 224, 300, 3.4),
    ("V2 table 4", "mobilenet_v2", 1.4, 224, 585, 6.9),
    ("V2 table 4", "mobilenet_v1", 1.0, 224, 575, 4.2),
    ("V1 table 4", "mobilenet_v1", 1.0, 224, 569, 4.2),
    ("V1 table 5", "mobilenet_v1", 0.75, 224, 325, 2.6),
    ("V1 table 6", "mobilenet_v1", 0.5, 224, 149, 1.3),
    ("V1 table 6", "mobilenet_v1", 0.25, 224, 41, 0.5),
    ("V1 table 7", "mobilenet_v1", 1.0, 192, 418, 4.2),
    ("V1 table 7", "mobilenet_v1", 1.0, 160, 290, 4.2),
    ("V1 table 7", "mobilenet_v1", 1.0, 128, 186, 4.2),
    ("V1 table 9", "mobilenet_v1", 0.5, 160, 76, 1.32),
)
# Slim's tables. By width: the parameters, then multiply-adds and ImageNet top-1, %, at SIDES.
SIDES = (224, 192, 160, 128, 96)
SLIM: dict[str, dict[float, Any]] = {
    # github.com/tensorflow/models, research/slim/nets/mobilenet/README.md. Multiply-adds are
    # rounded down. Parameters are the weights of convolutions and classifier, without batch norm
    # and biases.
    "mobilenet_v2": {
        1.4: (6.06, (582, 75.0)),
        1.3: (5.34, (509, 74.4)),
        1.0: (3.47, (300, 71.8), (221, 70.7), (154, 68.8), (99, 65.3), (56, 60.3)),
        0.75: (2.61, (209, 69.8), (153, 68.7), (107, 66.4), (69, 63.2), (39, 58.8)),
        0.5: (1.95, (97, 65.4), (71, 63.9), (50, 61.0), (32, 57.7), (18, 51.2)),
        0.35: (1.66, (59, 60.3), (43, 58.2), (30, 55.7), (20, 50.8), (11, 45.5)),
    },
    # research/slim/nets/mobilenet_v1.md
    "mobilenet_v1": {
        1.0: (4.24, (569, 70.9), (418, 70.0), (291, 68.0), (186, 65.2)),
        0.75: (2.59, (317, 68.4), (233, 67.2), (162, 65.3), (104, 62.1)),
        0.5: (1.34, (150, 63.3), (110, 61.7), (77, 59.1), (49, 56.3)),
        0.25: (0.47, (41, 49.8), (34, 47.7), (21, 45.5), (14, 41.5)),
    },
}
TITLES = {"mobilenet_v1": "V1", "mobilenet_v2": "V2"}
# All V1 rows are published for slim's 1001 classes, the V2 rows without the background class.
CLASSES = {"mobilenet_v1": 1001, "mobilenet_v2": 1000}


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
    of_slim = [
        (f"slim {TITLES[network]}", network, width, side, multiply_adds, parameters)
        for network, by_width in SLIM.items()
        for width, (parameters, *of_width) in by_width.items()
        for side, (multiply_adds, _) in zip(SIDES, of_width, strict=False)
    ]
    found = []
    for table, network, width, side, printed_madds, printed_parameters in (*PAPERS, *of_slim):
        model = create_model(network, width=width, num_classes=CLASSES[network])
        madds, parameters, weights = (
            count(model, (side, side, 3)) / 1e6
            for count in (complexity.multiply_adds, complexity.parameters, complexity.weights)
        )
        costs = (printed_madds, madds, printed_parameters, parameters, weights)
        found.append(Row(table, network, width, side, *costs))
    return found


def table_of(differing: Sequence[Row]) -> Table:
    lines = [
        (
            *(row.table, f"{row.network} {row.width:g}", row.resolution),
            *(f"{row.multiply_adds:.2f}", f"{row.printed_multiply_adds:g}"),
            *(f"{row.parameters:.3f}", f"{row.weights:.3f}", f"{row.printed_parameters:g}"),
        )
        for row in differing
    ]
    header = (
        *("table", "network", "pixels", "MAdds, M", "printed"),
        *("parameters, M", "weights, M", "printed"),
    )
    return Table("complexity", header, lines)


def draw(counted: Sequence[Row], path: Path) -> None:
    """Draws published top-1 accuracy against counted multiply-adds, one line per width."""
    figure = matplotlib.figure.Figure(figsize=(8, 5.2), layout="constrained")
    axis = figure.subplots()
    for network, color, fill, style in (
        ("mobilenet_v2", "k", "k", "-"),
        ("mobilenet_v1", "#3b6ea5", "w", "--"),
    ):
        of_slim = [row for row in counted if row[:2] == (f"slim {TITLES[network]}", network)]
        by_width = sorted(SLIM[network].items())
        for (width, (_, *printed)), marker in zip(by_width, "ovs^Dp", strict=False):
            costs = [row.multiply_adds for row in of_slim if row.width == width]
            label = f"{TITLES[network]} x {width:g}"
            how: Any = {"color": color, "marker": marker, "markerfacecolor": fill, "label": label}
            axis.plot(costs, [top1 for _, top1 in printed], style, **how)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel("million multiply-adds per image (counted)")
    axis.set_ylabel("ImageNet top-1 accuracy, % (as published by slim)")
    axis.set_title("MobileNetV1 and V2 by width and resolution")
    axis.grid(alpha=0.3)
    axis.legend(ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    out = experiment_parser(__file__, __doc__, "out", "docs").parse_args().out
    counted = rows()
    differing = [row for row in counted if not row.agrees()]
    print(f"{len(counted) - len(differing)} of {len(counted)} rows agree. The others:\n")
    print(table_of(differing))
    records = [{**row._asdict(), "agrees": row.agrees()} for row in counted]
    write_csv(records, out / "complexity.csv")
    draw(counted, out / "complexity.png")
    print(f"\nin {out}: complexity.csv, complexity.png")


if __name__ == "__main__":
    run(main)
