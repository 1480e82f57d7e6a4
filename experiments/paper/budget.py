"""When does an effect settle?

Trains the main arms of the ablation for several numbers of steps, each with its own schedule from
the first step to the last: a short run is not the beginning of a long one. Shows how the difference
of each arm to the baseline depends on the budget, with 95 % intervals, paired by seed, and in which
order the arms come.

Writes one workdir per budget, and budget.md and budget.png, to --out. The same command resumes
unfinished runs. --also names workdirs of the same arms, such as runs/v2_ablation-hour.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import ml_collections
import numpy as np

from configs import v2_ablation
from experiments.common.arms import difference
from experiments.common.experiment import Table, experiment_parser, run
from mnv2.runtime.cli import whole_number
from mnv2.runtime.errors import UserError
from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.plan import with_arms
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import rows
from mnv2.sweeps.workdir import Sweep, load

DATA, BASELINE = "fashion_mnist", "linear"
ARMS = (BASELINE, "relu6", "no_shortcut", "separable", "hourglass")
BUDGETS = (100, 200, 500, 1000, 2000)
STYLES = ("o-", "s--", "^:", "D-.", "v-")  # markers and lines of the arms
COLORS = ("black", "#d55e00", "#0072b2", "#009e73", "#cc79a7")  # told apart by all eyes


def config_of(steps: int, seeds: int) -> ml_collections.ConfigDict:
    """Returns the ablation's config for a number of steps, of which a tenth is the warm-up."""
    config = with_arms(v2_ablation.get_config("hour"))
    config.arms = tuple((arm, changes) for arm, changes in config.arms if arm in ARMS)
    config.panels = (("arms", "arm", ARMS),)
    config.seeds = seeds
    config.duration = f"{steps} steps"
    config.optimization.warmup = f"{steps // 10} steps"
    config.eval_every = config.checkpoint_every = "500 steps"
    return config


def accuracies(sweep: Sweep) -> dict[str, float]:
    """Returns the mean accuracy of each arm that has a finished run, in per cent."""
    return {row.arm: row.accuracy.mean for row in rows(sweep) if row.arm in ARMS}


def lines_of(sweeps: Mapping[int, Sweep]) -> list[Any]:
    """Returns one line per budget: the baseline's accuracy, all differences, the order of arms."""
    lines = []
    for steps, sweep in sweeps.items():
        found = accuracies(sweep)
        texts = (plus_minus(difference(sweep, arm, BASELINE), "+") for arm in ARMS[1:])
        order = " > ".join(sorted(found, key=lambda arm: -found[arm]))
        lines.append((steps, f"{found[BASELINE]:.2f}", *texts, order))
    return lines


def draw(sweeps: Mapping[int, Sweep], path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    means = {steps: accuracies(sweep) for steps, sweep in sweeps.items()}
    for number, (arm, style, color) in enumerate(zip(ARMS, STYLES, COLORS, strict=True)):
        how = {"color": color, "markerfacecolor": "white", "label": arm}
        finished = [steps for steps in sweeps if arm in means[steps]]
        left.plot(finished, [means[steps][arm] for steps in finished], style, **how)
        known = [  # beside each other
            (steps * (0.94 + 0.04 * number), estimate.mean, estimate.half_width)
            for steps in finished
            if arm != BASELINE and (estimate := difference(sweeps[steps], arm, BASELINE))
        ]
        if known:  # a half-width of None is not a number then
            x, middles, widths = np.array(known, float).T
            right.errorbar(x, middles, widths, fmt=style, capsize=3, **how)
    right.axhline(0, color="black", linewidth=0.8, linestyle=":")
    left.set_ylabel("test top-1 accuracy, %")
    right.set_ylabel(f"difference to {BASELINE}, points")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(list(sweeps), [str(steps) for steps in sweeps])
        axis.minorticks_off()
        axis.set_xlabel("training steps, batch 128")
        axis.legend()
    points = "Fashion-MNIST. Each point is the end of runs with their own schedule"
    figure.suptitle(f"{points}. Bars: 95 % intervals over seeds, paired", fontsize="medium")
    figure.savefig(path, dpi=110)


def sweeps_of(folders: Sequence[Path]) -> dict[int, Sweep]:
    """Reads the workdirs; returns the sweeps by the number of steps of the baseline, in order.

    Raises UserError without finished runs of the baseline, and twice of so many steps.
    """
    known: dict[int, Sweep] = {}
    for folder in folders:
        sweep = load(folder)
        if sweep.config["data"]["name"] != DATA or not sweep.results.get(BASELINE):
            raise UserError(f"no run of {BASELINE} on {DATA} is finished in {folder}")
        if (steps := sweep.steps[BASELINE]) in known:
            raise UserError(f"{known[steps].workdir} and {folder} both have {steps} steps")
        known[steps] = sweep
    return {steps: known[steps] for steps in sorted(known)}


def main() -> None:
    parser = experiment_parser(__file__, __doc__, seeds=3)
    parser.add_argument("--budgets", type=whole_number(10), nargs="+", default=BUDGETS)
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="WORKDIR")
    arguments = parser.parse_args()
    if twice := sorted(sweeps_of(arguments.also).keys() & set(arguments.budgets)):
        raise UserError(f"--also has {twice[0]} steps already: leave that out of --budgets")
    folders = [arguments.out / str(steps) for steps in arguments.budgets]
    for steps, folder in zip(arguments.budgets, folders, strict=True):
        run_sweep(config_of(steps, arguments.seeds), folder)
    sweeps = sweeps_of([*folders, *arguments.also])
    header = ("steps", f"{BASELINE}, %", *ARMS[1:], "order")
    Table("budget", header, lines_of(sweeps)).write(arguments.out)
    draw(sweeps, arguments.out / "budget.png")
    print(f"\nin {arguments.out}: budget.md, budget.png")


if __name__ == "__main__":
    run(main)
