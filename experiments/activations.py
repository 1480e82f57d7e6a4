"""What does ReLU6 destroy, layer by layer? Figure 7 of the MobileNetV2 paper, and more.

    python -m experiments.activations

Looks into the linear and ReLU6 networks of `experiments.shortcuts`, which are trained first if they
are not there, on 1,000 test pictures of Fashion-MNIST:

    figure 7       positive channels after each expansion, mean and range over places, before and
                   after training. More than 1/t of them, and the narrow input could be recovered
    bottlenecks    of each block's narrow output: how many directions it spreads over (effective
                   rank), with a linear bottleneck; with ReLU6, before it and after it, and the
                   shares of values that it cuts to 0, of those it cuts to 6, and of dead channels

Prints tables; writes figure_7.csv, bottlenecks.csv and activations.png to --out.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np

from experiments import shortcuts
from experiments.contenders import unoptimised
from experiments.tables import write_csv, write_markdown
from mnv2 import data, pretrained
from mnv2.analysis.activations import activity, before_activation, effective_rank
from mnv2.data.preprocess import UNIT_RANGE, normalize
from mnv2.ops import relu6
from mnv2.report import Estimate
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.huge_pages import restart_with_huge_pages

PICTURES = 1000
HEADER = (
    "bottleneck of",
    "channels",
    "rank, linear",
    "rank before ReLU6",
    "rank after it",
    "cut to 0, %",
    "cut to 6, %",
    "dead channels, %",
)


class Positive(NamedTuple):
    """Positive channels of one expansion, in % of its channels; `threshold` is the input's."""

    layer: str
    trained: bool
    channels: int
    threshold: float
    mean: float
    deviation: float
    fewest: float
    most: float


class Bottleneck(NamedTuple):
    """A block's narrow output, means over seeds with half-widths of their 95 % intervals.

    Ranks are effective ranks; shares are in %, of what ReLU6 does in the relu6 networks.
    """

    block: str
    channels: int
    linear_rank: float
    linear_half_width: float
    rank_before: float
    rank_after: float
    rank_after_half_width: float
    cut: float
    saturated: float
    dead: float


def look(folder: Path, images: np.ndarray, trained: bool = True) -> dict[str, Any]:
    """What every batch norm of a finished run gives for `images`, by its layer's path.

    Or, unless `trained`, what those of the network gave that the run began with.
    """
    loaded = pretrained.load(str(folder))
    model, variables = loaded.model, loaded.variables
    if not trained:
        variables = unoptimised(model.init)(jax.random.key(int(folder.name)), images[:1])
    apply = jax.jit(lambda x: before_activation(model, variables, x, train=not trained))
    return apply(jnp.asarray(images))


def block_number(path: str) -> int:
    """block_12/expand -> 12"""
    return int(path.split("/")[0].removeprefix("block_"))


def of_blocks(tensors: Mapping[str, Any], layer: str) -> list[str]:
    """The paths of one layer of every block, in the blocks' order."""
    return sorted((path for path in tensors if path.endswith(layer)), key=block_number)


def positive_channels(
    tensors: Mapping[str, Any], trained: bool, expansion: float
) -> list[Positive]:
    """Figure 7 of one network."""
    rows = []
    for path in of_blocks(tensors, "expand"):
        found = activity(tensors[path])
        numbers = (found.positive, found.deviation, found.fewest, found.most)
        shares = (100 * number / found.channels for number in numbers)
        rows.append(Positive(path, trained, found.channels, 100 / expansion, *shares))
    return rows


def bottlenecks(
    linear: Sequence[Mapping[str, Any]], with_relu6: Sequence[Mapping[str, Any]]
) -> list[Bottleneck]:
    """Each block's narrow output in networks of both kinds, one of each kind a seed."""
    rows = []
    for path in of_blocks(linear[0], "project"):
        of_linear = _estimate(effective_rank(tensors[path]) for tensors in linear)
        before = _estimate(effective_rank(tensors[path]) for tensors in with_relu6)
        after = _estimate(effective_rank(relu6(tensors[path])) for tensors in with_relu6)
        found = [activity(tensors[path]) for tensors in with_relu6]
        rows.append(
            Bottleneck(
                path.split("/")[0],
                found[0].channels,
                of_linear.mean,
                of_linear.half_width or 0.0,
                before.mean,
                after.mean,
                after.half_width or 0.0,
                *(
                    100 * float(np.mean([getattr(one, field) for one in found]))
                    for field in ("cut", "saturated", "dead")
                ),
            )
        )
    return rows


def _estimate(values: Iterable[float]) -> Estimate:
    estimate = Estimate.of(list(values))
    assert estimate is not None
    return estimate


def print_positive(rows: Sequence[Positive]) -> None:
    print("\npositive channels after each expansion, % of its channels")
    print(f"  {'layer':18} {'channels':>8}   before training        after training")
    before = {row.layer: row for row in rows if not row.trained}
    for after in (row for row in rows if row.trained):
        texts = (
            f"{row.mean:4.0f} ± {row.deviation:3.0f} ({row.fewest:2.0f}-{row.most:3.0f})"
            for row in (before[after.layer], after)
        )
        print(f"  {after.layer:18} {after.channels:8}   {'   '.join(texts)}")
    lost = [row for row in rows if row.trained and row.mean < row.threshold]
    print(f"  on average below 1/t of the channels after training: {len(lost)} layers")


def print_bottlenecks(rows: Sequence[Bottleneck]) -> None:
    print("\neffective rank of each block's narrow output, and what ReLU6 does to it")
    print("  " + "  ".join(f"{title:>9}" for title in HEADER))
    for row in rows:
        texts = zip(HEADER, cells(row), strict=True)
        print("  " + "  ".join(f"{text:>{max(9, len(title))}}" for title, text in texts))


def cells(row: Bottleneck) -> tuple[str, ...]:
    """A row of the table in HEADER's columns."""
    return (
        row.block,
        str(row.channels),
        f"{row.linear_rank:.1f} ± {row.linear_half_width:.1f}",
        f"{row.rank_before:.1f}",
        f"{row.rank_after:.1f} ± {row.rank_after_half_width:.1f}",
        f"{row.cut:.0f}",
        f"{row.saturated:.1f}",
        f"{row.dead:.1f}",
    )


def draw(positive: Sequence[Positive], narrow: Sequence[Bottleneck], path: Path) -> None:
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    *of_positive, right = figure.subplots(1, 3)
    for axis, trained in zip(of_positive, (False, True), strict=True):
        rows = [row for row in positive if row.trained == trained]
        x = [block_number(row.layer) for row in rows]
        axis.fill_between(
            x, [r.fewest for r in rows], [r.most for r in rows], color="0.9", label="range"
        )
        axis.errorbar(
            x,
            [r.mean for r in rows],
            yerr=[r.deviation for r in rows],
            color="k",
            marker="o",
            capsize=2,
            label="mean ± standard deviation",
        )
        axis.axhline(rows[0].threshold, color="k", linestyle=":", label="1/t: invertible above")
        axis.set_ylim(0, 100)
        axis.set_xlabel("block")
        axis.set_xticks(range(0, 17, 2))
        axis.set_title(f"{'after' if trained else 'before'} training")
    of_positive[0].set_ylabel("positive channels after expansion, %")
    of_positive[0].legend(fontsize="small")
    x = list(range(len(narrow)))
    for values, style, label in (
        ([r.linear_rank for r in narrow], "k-s", "linear"),
        ([r.rank_before for r in narrow], "k--v", "ReLU6: before it"),
        ([r.rank_after for r in narrow], "k:o", "ReLU6: after it"),
    ):
        right.plot(x, values, style, markerfacecolor="w" if "ReLU6" in label else "k", label=label)
    right.step(x, [r.channels for r in narrow], where="mid", color="0.6", label="channels")
    right.set_yscale("log")
    right.set_yticks((2, 5, 10, 20, 50, 100), ("2", "5", "10", "20", "50", "100"))
    right.set_xticks(range(0, 17, 2))
    right.set_xlabel("block")
    right.set_ylabel("effective rank of the bottleneck")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = command_parser("experiments.activations", __doc__)
    shortcuts.add_arguments(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/activations"))
    arguments = parser.parse_args()
    results = shortcuts.train(arguments.workdir, arguments.steps, arguments.seeds)
    dataset = data.open_dataset("fashion_mnist")
    batches = data.eval_batches(dataset, "test", PICTURES, view=lambda x: normalize(x, UNIT_RANGE))
    images = next(batches)["image"]
    tensors = {
        arm: [look(arguments.workdir / arm / str(seed), images) for seed in results.results[arm]]
        for arm in ("linear", "relu6")
    }
    first = arguments.workdir / "linear" / str(next(iter(results.results["linear"])))
    positive = positive_channels(look(first, images, trained=False), False, 6)
    positive += positive_channels(tensors["linear"][0], True, 6)
    narrow = bottlenecks(tensors["linear"], tensors["relu6"])
    print_positive(positive)
    print_bottlenecks(narrow)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_csv(positive, arguments.out / "figure_7.csv")
    write_csv(narrow, arguments.out / "bottlenecks.csv")
    write_markdown(arguments.out, "bottlenecks", HEADER, [cells(row) for row in narrow])
    draw(positive, narrow, arguments.out / "activations.png")
    print(f"\nwritten: {arguments.out}/figure_7.csv, bottlenecks.csv, activations.png")


if __name__ == "__main__":
    restart_with_huge_pages("experiments.activations")
    run(main)
