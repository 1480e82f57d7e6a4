"""Which reading of the paper's first table 2 is right? Each is built as a network and counted.

    python -m experiments.architecture

The first version of the paper (January 2018) contradicts itself: its text says 19 residual
bottlenecks where its table has 17; rows 5 and 6 disagree on where the fourth stride of 2 is; its
last row takes k channels where the row before gives 1280; and no softmax is shown. The paper
publishes about 300 M multiply-adds and 3.4 M parameters, which decides between the readings.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax

from mnv2.analysis import complexity
from mnv2.models import create_model
from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.runtime.cli import command_parser, run

IMAGE = (224, 224, 3)
PUBLISHED = (300.0, 3.4)  # millions: multiply-adds, parameters; rounded down, as will be seen

# Stride 2 taken from the row whose *input* shrinks next, which puts it at the row of 96 channels.
STRIDES_BY_INPUT_COLUMN = (2, 1, 2, 2, 1, 2, 2, 1)
# Both rows strided, as a reader gets who believes the stride column and the input column at once.
STRIDES_BOTH = (2, 1, 2, 2, 2, 2, 2, 1)


CONCLUSION = """\
So: 17 bottlenecks (19 counts the first and the last convolution), the fourth stride of 2 at the
row of 64 channels, the last row from 1280 channels to k. That is the table of the final version,
and the network in the authors' code. Softmax costs neither multiply-adds nor parameters, so the
count cannot say; here it is part of the loss, as in the authors' code."""


class ExtraClassifier(nn.Module):
    """The last row read as a convolution from k channels to k, behind one from 1280 to k."""

    network: nn.Module
    num_classes: int = 1000

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.Dense(self.num_classes, name="extra")(self.network(images, train))


class Softmax(nn.Module):
    """The last row followed by the softmax that the table does not show."""

    network: nn.Module

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        return nn.softmax(self.network(images, train))


class Reading(NamedTuple):
    """One way to read the table, as a network."""

    question: str
    reading: str
    model: nn.Module


def readings() -> list[Reading]:
    """The readings of each question; the first is the final version's, the same for all."""
    final = create_model("mobilenet_v2")

    def repeated(row: int, more: int) -> nn.Module:
        repeats = tuple(n + more * (i == row) for i, n in enumerate(REPEATS))
        return create_model("mobilenet_v2", repeats=repeats)

    return [
        Reading("blocks", "17; the first and the last conv make 19", final),
        Reading("blocks", "19: two more of 24 channels at 56", repeated(1, 2)),
        Reading("blocks", "19: two more of 64 channels at 14", repeated(3, 2)),
        Reading("blocks", "19: two more of 160 channels at 7", repeated(5, 2)),
        Reading("stride 2", "at the row of 64 channels (28 -> 14)", final),
        Reading(
            "stride 2",
            "at the row of 96, by the input column",
            create_model("mobilenet_v2", strides=STRIDES_BY_INPUT_COLUMN),
        ),
        Reading("stride 2", "at both", create_model("mobilenet_v2", strides=STRIDES_BOTH)),
        Reading("last row", "from 1280 channels to k", final),
        Reading("last row", "from 1280 to k, and from k to k", ExtraClassifier(final)),
        Reading("softmax", "in the loss", final),
        Reading("softmax", "in the network", Softmax(final)),
    ]


def fits(multiply_adds: float, weights: float) -> bool:
    """True if counts, in millions, are the published ones when rounded down as these are."""
    return (math.floor(multiply_adds), math.floor(10 * weights) / 10) == PUBLISHED


def main() -> None:
    command_parser("experiments.architecture", __doc__).parse_args()
    print(f"published: {PUBLISHED[0]:g} M multiply-adds, {PUBLISHED[1]} M parameters\n")
    print(f"{'question':9} {'reading':45} {'MAdds, M':>9} {'weights, M':>10}  fits")
    for question, reading, model in readings():
        madds = complexity.multiply_adds(model, IMAGE) / 1e6
        weights = complexity.weights(model, IMAGE) / 1e6
        verdict = "yes" if fits(madds, weights) else "no"
        print(f"{question:9} {reading:45} {madds:9.1f} {weights:10.2f}  {verdict}")
    print(f"\n{CONCLUSION}")


if __name__ == "__main__":
    run(main)
