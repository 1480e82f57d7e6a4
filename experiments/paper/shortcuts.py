"""Do shortcuts make up for ReLU6 in the bottlenecks?

The paper says that ReLU6 in the bottlenecks costs accuracy, and in a footnote that shortcuts reduce
this loss. Four arms are trained on Fashion-MNIST with five seeds each: linear and ReLU6
bottlenecks, with and without shortcuts. Prints the cost of ReLU6 with shortcuts and without, and
the difference of these two, paired by seed (95 % intervals). Writes the runs, report.md and
report.png to --workdir. The same command resumes unfinished runs.
"""

import argparse
from collections.abc import Mapping

import numpy as np

from experiments.common import arms
from experiments.common.experiment import Table, experiment_parser, run
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import Sweep

ARMS = {
    "linear": {},
    "relu6": {"model.bottleneck": "relu6"},
    "linear_alone": {"model.shortcut": "none"},
    "relu6_alone": {"model.shortcut": "none", "model.bottleneck": "relu6"},
}
TITLES = (
    *("linear, with shortcuts", "ReLU6, with shortcuts"),
    *("linear, without shortcuts", "ReLU6, without shortcuts"),
)
SIZES = {"steps": 200, "seeds": 5}
PANELS = (
    ("with shortcuts", "model.bottleneck", ("linear", "relu6")),
    ("without shortcuts", "model.bottleneck", ("linear_alone", "relu6_alone")),
)


def effects(accuracies: Mapping[str, Mapping[int, float]]) -> dict[str, Estimate | None]:
    """Estimates the effect of ReLU6 with shortcuts and without, and the difference of the two.

    `accuracies` are in per cent, by arm and seed. Only seeds that all arms have are used.
    """
    seeds = sorted(set.intersection(*map(set, accuracies.values())))
    by_arm = {arm: np.array([of_arm[seed] for seed in seeds]) for arm, of_arm in accuracies.items()}
    with_ = by_arm["relu6"] - by_arm["linear"]
    without = by_arm["relu6_alone"] - by_arm["linear_alone"]
    return {
        "ReLU6 - linear, with shortcuts": Estimate.of(list(with_)),
        "ReLU6 - linear, without shortcuts": Estimate.of(list(without)),
        "what shortcuts make up for": Estimate.of(list(with_ - without)),
    }


def train(arguments: argparse.Namespace) -> Sweep:
    return arms.train(arguments, ARMS, PANELS)


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, "workdir", **SIZES).parse_args()
    results = train(arguments)
    accuracies = {arm: results.accuracies(arm) for arm in ARMS}
    lines = [
        (title, plus_minus(Estimate.of(list(of_arm.values()))))
        for title, of_arm in zip(TITLES, accuracies.values(), strict=True)
    ]
    lines += [(name, plus_minus(effect, "+")) for name, effect in effects(accuracies).items()]
    header = ("", f"test top-1, %, or points ({arguments.seeds} seeds)")
    Table("shortcuts", header, lines).write(arguments.workdir)


if __name__ == "__main__":
    run(main)
