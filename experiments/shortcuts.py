"""Does a shortcut make up for a bottleneck with ReLU6? python -m experiments.shortcuts

The paper says that ReLU6 in the bottlenecks hurts, and in a footnote that with shortcuts the loss
is less. Four arms on Fashion-MNIST, linear and ReLU6, with and without shortcuts, five seeds each;
what ReLU6 costs with shortcuts, without, and the difference between these, paired by seed (95 %
intervals). Writes runs, report.md and report.png to --workdir; a second call goes on.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import v2_ablation
from experiments.tables import write_markdown
from mnv2 import report
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.huge_pages import restart_with_huge_pages
from mnv2.sweeps import execute

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


def effects(accuracies: dict[str, dict[int, float]]) -> list[tuple[str, report.Estimate]]:
    """What ReLU6 changes with shortcuts and without, and the difference, over the seeds of all."""
    seeds = set.intersection(*(set(accuracies[arm]) for arm, _ in ARMS))
    pairs = [
        (
            accuracies["relu6"][seed] - accuracies["linear"][seed],
            accuracies["relu6_alone"][seed] - accuracies["linear_alone"][seed],
        )
        for seed in sorted(seeds)
    ]
    named: list[tuple[str, Sequence[float]]] = [
        ("ReLU6 - linear, with shortcuts", [with_ for with_, _ in pairs]),
        ("ReLU6 - linear, without", [without for _, without in pairs]),
        ("what shortcuts make up for", [with_ - without for with_, without in pairs]),
    ]
    estimates = [(name, report.Estimate.of(values)) for name, values in named]
    return [(name, estimate) for name, estimate in estimates if estimate]


def train(workdir: Path, steps: int, seeds: int) -> report.Sweep:
    """Does the runs that are not finished in `workdir`, and loads all."""
    config = v2_ablation.get_config()
    config.arms = ARMS
    config.panels = (
        ("with shortcuts", "model.bottleneck", ("linear", "relu6")),
        ("without shortcuts", "model.bottleneck", ("linear_alone", "relu6_alone")),
    )
    config.seeds = seeds
    config.duration = f"{steps} steps"
    config.eval_every = config.checkpoint_every = "0 steps"
    execute.run(config, workdir)
    return report.load(workdir)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the runs are told by."""
    parser.add_argument("--workdir", type=Path, default=Path("runs/shortcuts"))
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--seeds", type=int, default=5)


def main() -> None:
    parser = command_parser("experiments.shortcuts", __doc__)
    add_arguments(parser)
    arguments = parser.parse_args()
    results = train(arguments.workdir, arguments.steps, arguments.seeds)
    found = effects({arm: results.accuracies(arm) for arm, _ in ARMS})
    lines = [(name, report.plus_minus(estimate, "+")) for name, estimate in found]
    print()
    for name, estimate in lines:
        print(f"{name:32} {estimate} points")
    by_arm = {row.arm: row for row in results.rows()}
    lines = [
        *((title, report.plus_minus(by_arm[arm].accuracy)) for arm, title in TITLES.items()),
        *lines,
    ]
    header = ("", f"test top-1, %, or points ({arguments.seeds} seeds)")
    write_markdown(arguments.workdir, "shortcuts", header, lines)


if __name__ == "__main__":
    restart_with_huge_pages("experiments.shortcuts")
    run(main)
