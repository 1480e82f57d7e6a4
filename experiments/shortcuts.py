"""Does a shortcut make up for a bottleneck with ReLU6? python -m experiments.shortcuts

The paper says that ReLU6 in the bottlenecks hurts, and in a footnote that with shortcuts the loss
is less. Four arms on Fashion-MNIST, linear and ReLU6, with and without shortcuts, five seeds each;
what ReLU6 costs with shortcuts, without, and the difference between these, paired by seed (95 %
intervals). Writes runs, report.md and report.png to --workdir; a second call goes on.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import v2_ablation
from mnv2 import report, sweep
from mnv2.allocator import restart_with_huge_pages
from mnv2.commands import command_parser, run

ARMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("linear", {}),
    ("relu6", {"model.bottleneck": "relu6"}),
    ("linear_alone", {"model.shortcut": "none"}),
    ("relu6_alone", {"model.shortcut": "none", "model.bottleneck": "relu6"}),
)


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


def main() -> None:
    parser = command_parser("experiments.shortcuts", __doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/shortcuts"))
    parser.add_argument("--steps", type=int, default=200, help="of each run")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    config = v2_ablation.get_config()
    config.arms = ARMS
    config.panels = (
        ("with shortcuts", "model.bottleneck", ("linear", "relu6")),
        ("without shortcuts", "model.bottleneck", ("linear_alone", "relu6_alone")),
    )
    config.seeds = arguments.seeds
    config.duration = f"{arguments.steps} steps"
    config.eval_every = config.checkpoint_every = "0 steps"
    sweep.run(config, arguments.workdir)
    results = report.load(arguments.workdir)
    print()
    for name, estimate in effects({arm: results.accuracies(arm) for arm, _ in ARMS}):
        width = "" if estimate.half_width is None else f" ± {estimate.half_width:.2f}"
        print(f"{name:32} {estimate.mean:+.2f}{width} points ({estimate.count} seeds)")


if __name__ == "__main__":
    restart_with_huge_pages("experiments.shortcuts")
    run(main)
