"""Do shortcuts make up for ReLU6 in the bottlenecks?

The paper says that ReLU6 in the bottlenecks costs accuracy, and in a footnote that shortcuts reduce
this loss. Four arms are trained on Fashion-MNIST with five seeds each: linear and ReLU6
bottlenecks, with and without shortcuts. Prints the cost of ReLU6 with shortcuts and without, and
the difference of these two, paired by seed (95 % intervals). Writes the runs, report.md and
report.png to --workdir. The same command resumes unfinished runs.
"""

import argparse
from pathlib import Path
from typing import Any

from configs import v2_ablation
from experiments.common.table import Table
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.plan import with_arms
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import Estimate, rows
from mnv2.sweeps.workdir import Sweep, load

ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("relu6", {"model.bottleneck": "relu6"}),
    ("linear_alone", {"model.shortcut": "none"}),
    ("relu6_alone", {"model.shortcut": "none", "model.bottleneck": "relu6"}),
)
TITLES = {
    "linear": "linear, with shortcuts",
    "relu6": "ReLU6, with shortcuts",
    "linear_alone": "linear, without shortcuts",
    "relu6_alone": "ReLU6, without shortcuts",
}


def effects(accuracies: dict[str, dict[int, float]]) -> list[tuple[str, Estimate]]:
    """Estimates the effect of ReLU6 with shortcuts and without, and the difference of the two.

    Only seeds that all arms have are used.

    Args:
        accuracies: The accuracy in per cent, by arm and seed.
    """
    seeds = set.intersection(*(set(accuracies[arm]) for arm, _ in ARMS))
    with_, without = (
        [accuracies[relu6][seed] - accuracies[linear][seed] for seed in sorted(seeds)]
        for relu6, linear in (("relu6", "linear"), ("relu6_alone", "linear_alone"))
    )
    named = {
        "ReLU6 - linear, with shortcuts": with_,
        "ReLU6 - linear, without shortcuts": without,
        "what shortcuts make up for": [a - b for a, b in zip(with_, without, strict=True)],
    }
    estimates = [(name, Estimate.of(values)) for name, values in named.items()]
    return [(name, estimate) for name, estimate in estimates if estimate]


def train(workdir: Path, steps: int, seeds: int) -> Sweep:
    """Trains the runs that are not finished in `workdir`, and loads all results."""
    config = with_arms(v2_ablation.get_config())
    config.arms = ARMS
    config.panels = (
        ("with shortcuts", "model.bottleneck", ("linear", "relu6")),
        ("without shortcuts", "model.bottleneck", ("linear_alone", "relu6_alone")),
    )
    config.seeds = seeds
    config.duration = f"{steps} steps"
    config.eval_every = config.checkpoint_every = "0 steps"
    run_sweep(config, workdir)
    return load(workdir)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that describe the runs."""
    parser.add_argument("--workdir", type=Path, default=Path("runs/shortcuts"))
    parser.add_argument("--steps", type=whole_number(), default=200, help="steps of each run")
    parser.add_argument("--seeds", type=whole_number(), default=5)


def main() -> None:
    parser = command_parser("experiments.paper.shortcuts", __doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    results = train(arguments.workdir, arguments.steps, arguments.seeds)
    found = effects({arm: results.accuracies(arm) for arm, _ in ARMS})
    by_arm = {row.arm: row for row in rows(results)}
    lines = [
        *((title, plus_minus(by_arm[arm].accuracy)) for arm, title in TITLES.items()),
        *((name, plus_minus(estimate, "+")) for name, estimate in found),
    ]
    header = ("", f"test top-1, %, or points ({arguments.seeds} seeds)")
    Table("shortcuts", header, lines).write(arguments.workdir)


if __name__ == "__main__":
    run(main)
