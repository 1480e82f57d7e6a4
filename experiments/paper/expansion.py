"""Which expansion t is best?

The paper says that a larger t gives better results, and that small networks do better with a
smaller t (sections 3.3 and 6.4). Here a narrow and a wide MobileNetV2 are trained on Fashion-MNIST
with t = 2, 6 and 10: at equal width, where a larger t costs more, and at equal multiply-adds, where
a larger t makes the network narrower. The difference to t = 6 is paired by seed (95 % intervals).
Writes the runs, report.md and report.png to --workdir. The same command resumes unfinished runs.
"""

from pathlib import Path
from typing import Any

from configs import v2_ablation
from experiments.common.paired import difference
from experiments.common.table import Table
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.plan import with_arms
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import rows
from mnv2.sweeps.workdir import Sweep, load

EXPANSIONS = (2.0, 6.0, 10.0)
USUAL = 6.0
WIDTHS = {"narrow": 0.25, "wide": 0.75}
# These widths have the cost of t = 6, to within 2.2 %: channels are rounded to multiples of 8.
WIDTHS_OF_EQUAL_COST = {
    "narrow": {2.0: 0.38, 10.0: 0.16},
    "wide": {2.0: 1.21, 10.0: 0.56},
}


def arms() -> dict[str, dict[str, Any]]:
    """Returns the changes of each arm: each t at the same width, and at the same cost as t = 6."""
    found: dict[str, dict[str, Any]] = {}
    for name, width in WIDTHS.items():
        for t in EXPANSIONS:
            found[f"{name}_{t:g}"] = {"model.width": width, "model.expansion": t}
        for t, equal in WIDTHS_OF_EQUAL_COST[name].items():
            changes = {"model.width": equal, "model.expansion": t}
            found[f"{name}_{t:g}_equal_cost"] = changes
    return found


def panels() -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Returns the panels of the figure: title, field, arms."""
    return tuple(
        (
            f"{name}, equal {'multiply-adds' if suffix else 'width'}",
            "model.expansion",
            tuple(f"{name}_{t:g}{suffix if t != USUAL else ''}" for t in EXPANSIONS),
        )
        for name in WIDTHS
        for suffix in ("", "_equal_cost")
    )


def main() -> None:
    parser = command_parser("experiments.paper.expansion", __doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/expansion"))
    parser.add_argument("--steps", type=whole_number(), default=120, help="steps of each run")
    parser.add_argument("--seeds", type=whole_number(), default=3)
    arguments = parser.parse_args()
    config = with_arms(v2_ablation.get_config())
    config.arms = tuple(arms().items())
    config.baseline = f"narrow_{USUAL:g}"
    config.panels = panels()
    config.seeds = arguments.seeds
    config.duration = f"{arguments.steps} steps"
    config.eval_every = config.checkpoint_every = "0 steps"
    run_sweep(config, arguments.workdir)
    write_table(load(arguments.workdir))


def write_table(results: Sweep) -> None:
    """Writes the accuracy of each arm, and its difference to the same network with t = 6."""
    lines = []
    for row in rows(results):
        name = row.arm.split("_")[0]
        usual = f"{name}_{USUAL:g}"
        changes = results.arms[row.arm]
        lines.append(
            (
                f"{name}, equal {'cost' if row.arm.endswith('cost') else 'width'}",
                f"{changes['model.expansion']:g}",
                f"{changes['model.width']:g}",
                f"{row.multiply_adds / 1e6:.2f} M",
                row.accuracy.count,
                plus_minus(row.accuracy),
                "" if row.arm == usual else plus_minus(difference(results, row.arm, usual), "+"),
            )
        )
    header = ("network", "t", "width", "MAdds", "seeds", "test top-1, %", "difference to t = 6")
    Table("expansion", header, lines).write(Path(results.workdir))


if __name__ == "__main__":
    run(main)
