"""Sweeps of the ablation's network with other arms, and differences that are paired by seed."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import Sweep, load
from mnv2.training.config import defaults


def train(
    arguments: argparse.Namespace,
    arms: Mapping[str, Mapping[str, Any]],
    panels: Sequence[tuple[str, str, tuple[str, ...]]],
    baseline: str = "linear",
) -> Sweep:
    """Trains the runs that are not finished, and loads all results.

    `arguments` are workdir, steps and seeds. Each arm makes changes to the ablation's config, and
    is compared with `baseline` in the report.
    """
    config = defaults()
    config.update(arms=tuple(arms.items()), panels=tuple(panels), baseline=baseline)
    config.update(seeds=arguments.seeds, duration=f"{arguments.steps} steps")
    config.eval_every = config.checkpoint_every = "0 steps"
    run_sweep(config, arguments.workdir)
    return load(arguments.workdir)


def difference(sweep: Sweep, arm: str, other: str) -> Estimate | None:
    """Estimates how much better an arm is than another, in points, paired by seed."""
    accuracies, others = sweep.accuracies(arm), sweep.accuracies(other)
    return Estimate.of([accuracies[seed] - others[seed] for seed in accuracies if seed in others])
