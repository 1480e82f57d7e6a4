"""Which reading of the paper's first table 2 is right? Counts a network for each reading.

The first version of the paper (January 2018) contradicts itself. Its text has 19 residual
bottlenecks, its table has 17. Rows 5 and 6 disagree on the place of the fourth stride of 2. The
last row takes k channels, but the row before it has 1280. No softmax is shown. The paper publishes
about 300 M multiply-adds and 3.4 M parameters, and these numbers decide between the readings.
"""

import math

import flax.linen as nn

from experiments.common.experiment import Table, experiment_parser, run
from mnv2.analysis import complexity
from mnv2.models import create_model
from mnv2.models.mobilenet_v2 import REPEATS

IMAGE = (224, 224, 3)
PUBLISHED = (300.0, 3.4)  # multiply-adds and parameters in millions, rounded down


def readings() -> list[tuple[str, str, nn.Module]]:
    """Returns (question, reading, network); the first of a question is the final version's."""
    final = create_model("mobilenet_v2")
    # If the input column is right, the row with 96 channels has the stride of 2, not the one with
    # 64. If the stride column is right as well, both rows have it.
    by_input_column, both = (
        create_model("mobilenet_v2", strides=(2, 1, 2, 2, stride, 2, 2, 1)) for stride in (1, 2)
    )

    def two_more(row: int) -> nn.Module:
        repeats = tuple(n + 2 * (i == row) for i, n in enumerate(REPEATS))
        return create_model("mobilenet_v2", repeats=repeats)

    return [
        ("blocks", "17 (19 with the first and the last conv)", final),
        ("blocks", "19: two more with 24 channels, at 56 x 56", two_more(1)),
        ("blocks", "19: two more with 64 channels, at 14 x 14", two_more(3)),
        ("blocks", "19: two more with 160 channels, at 7 x 7", two_more(5)),
        ("stride 2", "in the row with 64 channels (28 -> 14)", final),
        ("stride 2", "in the row with 96, by the input column", by_input_column),
        ("stride 2", "in both rows", both),
        ("last row", "from 1280 channels to k", final),
        ("last row", "from 1280 to k, then from k to k", nn.Sequential((final, nn.Dense(1000)))),
        ("softmax", "in the loss", final),
        ("softmax", "in the network", nn.Sequential((final, nn.softmax))),
    ]


def table() -> Table:
    lines = []
    for question, reading, model in readings():
        madds = complexity.multiply_adds(model, IMAGE) / 1e6
        weights = complexity.weights(model, IMAGE) / 1e6
        fits = (math.floor(madds), math.floor(10 * weights) / 10) == PUBLISHED
        cells = (f"{madds:.1f}", f"{weights:.2f}", "yes" if fits else "no")
        lines.append((f"{question}: {reading}", *cells))
    header = ("reading of table 2", "multiply-adds, M", "weights, M", "fits")
    return Table("architecture", header, lines)


def main() -> None:
    out = experiment_parser(__file__, __doc__).parse_args().out
    print(f"published: {PUBLISHED[0]:g} M multiply-adds, {PUBLISHED[1]} M parameters")
    table().write(out)


if __name__ == "__main__":
    run(main)
