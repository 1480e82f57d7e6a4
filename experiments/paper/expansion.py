"""Which expansion t is best?

The paper says that a larger t gives better results, and that small networks do better with a
smaller t (sections 3.3 and 6.4). Here a narrow and a wide MobileNetV2 are trained on Fashion-MNIST
with t = 2, 6 and 10: at equal width, where a larger t costs more, and at equal multiply-adds, where
a larger t makes the network narrower. The difference to t = 6 is paired by seed (95 % intervals).
Writes the runs, report.md and report.png to --workdir. The same command resumes unfinished runs.
"""

from pathlib import Path

from experiments.common.arms import difference, train
from experiments.common.experiment import Table, experiment_parser, run
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import rows
from mnv2.sweeps.workdir import Sweep

EXPANSIONS = (2, 6, 10)
# Those of equal cost have the cost of t = 6, to within 2.2 %: channels are rounded to multiples of
# 8.
WIDTHS = {
    "narrow": {"width": (0.25, 0.25, 0.25), "multiply-adds": (0.38, 0.25, 0.16)},
    "wide": {"width": (0.75, 0.75, 0.75), "multiply-adds": (1.21, 0.75, 0.56)},
}


def arms() -> tuple[dict[str, dict[str, float]], list[tuple[str, str, tuple[str, ...]]]]:
    """Returns the changes of each arm, and the panels of the figure: title, field, arms."""
    found, panels = {}, []
    for name, by_equal in WIDTHS.items():
        for equal, widths in by_equal.items():
            suffix = "_equal_cost" if equal == "multiply-adds" else ""
            shown = tuple(f"{name}_{t}{suffix if t != 6 else ''}" for t in EXPANSIONS)
            panels.append((f"{name}, equal {equal}", "model.expansion", shown))
            for arm, width, t in zip(shown, widths, EXPANSIONS, strict=True):
                found[arm] = {"model.width": width, "model.expansion": float(t)}
    return found, panels


def write_table(results: Sweep) -> None:
    lines = []
    for row in rows(results):
        name = row.arm.split("_")[0]
        equal = "cost" if row.arm.endswith("cost") else "width"
        changes = (f"{x:g}" for x in reversed(results.arms[row.arm].values()))
        cost, count, accuracy = row.multiply_adds / 1e6, row.accuracy.count, row.accuracy
        usual = f"{name}_6"
        gain = "" if row.arm == usual else plus_minus(difference(results, row.arm, usual), "+")
        costs = (*changes, f"{cost:.2f} M")
        lines.append((f"{name}, equal {equal}", *costs, count, plus_minus(accuracy), gain))
    header = ("network", "t", "width", "MAdds", "seeds", "test top-1, %", "difference to t = 6")
    Table("expansion", header, lines).write(Path(results.workdir))


def main() -> None:
    parser = experiment_parser(__file__, __doc__, "workdir", steps=120, seeds=3)
    write_table(train(parser.parse_args(), *arms(), baseline="narrow_6"))


if __name__ == "__main__":
    run(main)
