"""What does ReLU6 destroy in each layer of a network? Figure 7 of the MobileNetV2 paper, and more.

Analyses the linear and the ReLU6 networks of `experiments.paper.shortcuts` on 1,000 test pictures
of Fashion-MNIST. If these networks are not there, they are trained first.

    figure 7       the positive channels after each expansion: their mean and range over places in
                   the image, before and after training. If more than 1/t of the channels are
                   positive, the narrow input could be recovered
    bottlenecks    the narrow output of each block: the number of directions that it spreads over
                   (effective rank) with a linear bottleneck, and before and after ReLU6; the shares
                   of values that ReLU6 cuts to 0 and to 6, and the share of dead channels
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from experiments.common.command import experiment_parser
from experiments.common.initialisation import unoptimised
from experiments.common.table import Table
from experiments.paper import shortcuts
from mnv2 import data, pretrained
from mnv2.models.batch_norm import BatchNorm
from mnv2.ops import relu6
from mnv2.preprocess import Pipeline
from mnv2.preprocess.host import View
from mnv2.pretrained import Preprocessing
from mnv2.runtime.cli import run
from mnv2.runtime.machine import keep_freed_memory
from mnv2.sweeps.report import with_half_width
from mnv2.sweeps.statistics import Estimate

PICTURES = 1000
THRESHOLD = 100 / 6  # 1/t in per cent, the channels of the input


class Activity(NamedTuple):
    """Statistics of the input of ReLU6 over all images and pixels; shares are in per cent."""

    channels: int
    positive: float  # share of positive channels, mean over pixels
    deviation: float  # the same, standard deviation over pixels
    fewest: float  # the same, minimum over pixels
    most: float  # the same, maximum over pixels
    cut: float  # share of values that are not positive: ReLU6 maps them to 0
    saturated: float  # share of values that are 6 or more: ReLU6 maps them to 6
    dead: float  # share of channels that are not positive at any pixel


def before_activation(
    model: nn.Module, variables: Any, images: Float[Array, "n h w c"], train: bool = False
) -> dict[str, Float[Array, "n h2 w2 c2"]]:
    """Returns the output of every batch norm by the path of its layer, such as block_3/expand.

    The layer then applies its activation function, if it has one, to these values. With `train`,
    batch norm uses the statistics of `images`. A new network has no other statistics.
    """
    found: dict[str, Array] = {}

    def note(following: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if not isinstance(context.module, BatchNorm) or context.method_name != "__call__":
            return following(*args, **kwargs)
        if args[0].shape[-1] == context.module.features:  # without ReLU6, which the layer applies
            args = args[:2]
        return found.setdefault("/".join(context.module.path[:-1]), following(*args, **kwargs))

    with nn.intercept_methods(note):
        model.apply(
            variables,
            images,
            train=train,
            mutable=["intermediates", "batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
    return found


def activity(values: Float[Array, "n h w c"]) -> Activity:
    """Computes the statistics of `values`, the input of ReLU6."""
    channels = values.shape[-1]
    flat = np.asarray(values).reshape(-1, channels)
    positive = flat > 0
    share = positive.mean(axis=1)
    of_pixels = (share.mean(), share.std(), share.min(), share.max())
    of_values = (1 - positive.mean(), (flat >= 6).mean(), 1 - positive.any(axis=0).mean())
    return Activity(channels, *(100 * float(x) for x in (*of_pixels, *of_values)))


def effective_rank(values: Float[Array, "n h w c"]) -> float:
    """Computes the number of directions, 1 to c, over which the channels of a tensor spread.

    This is the exponential of an entropy (Roy & Vetterli 2007, EUSIPCO). The entropy is that of the
    eigenvalues of the channels' covariance, each divided by the trace. The result is 0 for a
    constant tensor.
    """
    flat = jnp.asarray(values, jnp.float32).reshape(-1, values.shape[-1])
    centred = np.asarray(flat - flat.mean(axis=0), np.float64)
    eigenvalues = np.clip(np.linalg.eigvalsh(centred.T @ centred), 0, None)
    return float(np.exp(stats.entropy(eigenvalues))) if eigenvalues.any() else 0.0


class Bottleneck(NamedTuple):
    """The narrow output of one block: over seeds, the effective ranks, and shares in per cent."""

    block: int
    channels: int
    linear: Estimate  # ranks
    before: Estimate
    after: Estimate
    cut: float  # values that ReLU6 sets to 0, in the ReLU6 networks
    saturated: float  # values that ReLU6 sets to 6
    dead: float  # channels that are positive nowhere


def batch_norm_outputs(folder: Path, images: np.ndarray, trained: bool = True) -> dict[str, Any]:
    """Returns the output of each batch norm of a finished run, by the path of its layer.

    With the weights that the run began with, unless they shall be `trained`.
    """
    loaded = pretrained.load(str(folder))
    model, variables = loaded.model, loaded.variables
    if not trained:
        variables = unoptimised(model.init)(jax.random.key(int(folder.name)), images[:1])
    apply = jax.jit(lambda x: before_activation(model, variables, x, train=not trained))
    return apply(jnp.asarray(images))


def of_blocks(tensors: Mapping[str, Any], layer: str) -> dict[int, Any]:
    """Returns the tensor of one layer of each block, by the number of the block, in order."""
    paths = [path for path in tensors if path.endswith(layer)]
    numbers = {int(path.split("/")[0].removeprefix("block_")): path for path in paths}
    return {number: tensors[numbers[number]] for number in sorted(numbers)}


def expansions(tensors: Mapping[str, Any]) -> dict[int, Activity]:
    """Counts the positive channels after each expansion of one network (figure 7), by block."""
    return {number: activity(tensor) for number, tensor in of_blocks(tensors, "expand").items()}


def bottlenecks(
    linear: Sequence[Mapping[str, Any]], with_relu6: Sequence[Mapping[str, Any]]
) -> list[Bottleneck]:
    """Compares the narrow outputs of the blocks; the tensors are by path, in a mapping per seed."""

    def ranks(tensors: Iterable[Any]) -> Estimate:
        estimate = Estimate.of([effective_rank(tensor) for tensor in tensors])
        assert estimate is not None
        return estimate

    of_linear, of_relu6 = (
        [of_blocks(tensors, "project") for tensors in seeds] for seeds in (linear, with_relu6)
    )
    rows = []
    for block in of_linear[0]:
        inputs = [tensors[block] for tensors in of_relu6]
        found = [activity(tensor) for tensor in inputs]
        linear_ranks = ranks(tensors[block] for tensors in of_linear)
        shares = np.mean([(one.cut, one.saturated, one.dead) for one in found], axis=0)
        channels, after = found[0].channels, ranks(map(relu6, inputs))
        rows.append(Bottleneck(block, channels, linear_ranks, ranks(inputs), after, *shares))
    return rows


def table_of_positive(before: Mapping[int, Activity], after: Mapping[int, Activity]) -> Table:
    """Returns figure 7 as a table, before and after training."""
    lines = []
    for block in after:
        cells = (
            f"{one.positive:.0f} ± {one.deviation:.0f} ({one.fewest:.0f}-{one.most:.0f})"
            for one in (before[block], after[block])
        )
        lines.append((f"block_{block}/expand", after[block].channels, *cells))
    header = ("expansion", "channels", "positive, %", "after training, %")
    return Table("figure_7", header, lines)


def table_of_bottlenecks(rows: Sequence[Bottleneck]) -> Table:
    """Returns the effective ranks of the bottlenecks, and the effect of ReLU6."""
    lines = [
        (
            *(f"block_{row.block}", row.channels),
            with_half_width(row.linear.mean, row.linear.half_width, digits=1),
            f"{row.before.mean:.1f}",
            with_half_width(row.after.mean, row.after.half_width, digits=1),
            *(f"{row.cut:.0f}", f"{row.saturated:.1f}", f"{row.dead:.1f}"),
        )
        for row in rows
    ]
    header = (
        *("bottleneck of", "channels", "rank, linear", "rank before ReLU6", "rank after ReLU6"),
        *("cut to 0, %", "cut to 6, %", "dead channels, %"),
    )
    return Table("bottlenecks", header, lines)


def draw(
    positive: Sequence[Mapping[int, Activity]], narrow: Sequence[Bottleneck], path: Path
) -> None:
    """Draws figure 7 before and after training, and the effective ranks of the bottlenecks."""
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    *of_positive, right = figure.subplots(1, 3)
    titles = ("before training", "after training")
    for axis, title, found in zip(of_positive, titles, positive, strict=True):
        x = list(found)
        _, means, deviations, fewest, most, *_ = zip(*found.values(), strict=True)
        axis.fill_between(x, fewest, most, color="0.9", label="range")
        label = "mean ± standard deviation"
        axis.errorbar(x, means, yerr=deviations, color="k", marker="o", capsize=2, label=label)
        axis.axhline(THRESHOLD, color="k", linestyle=":", label="1/t: invertible above")
        axis.set_ylim(0, 100)
        axis.set_xlabel("block")
        axis.set_xticks(range(0, 17, 2))
        axis.set_title(title)
    of_positive[0].set_ylabel("positive channels after expansion, %")
    of_positive[0].legend(fontsize="small")
    x = [row.block for row in narrow]
    for field, style, fill, label in (
        ("linear", "k-s", "k", "linear"),
        ("before", "k--v", "w", "ReLU6: before it"),
        ("after", "k:o", "w", "ReLU6: after it"),
    ):
        ranks = [getattr(row, field).mean for row in narrow]
        right.plot(x, ranks, style, markerfacecolor=fill, label=label)
    right.step(x, [r.channels for r in narrow], where="mid", color="0.6", label="channels")
    right.set_yscale("log")
    right.set_yticks((2, 5, 10, 20, 50, 100), ("2", "5", "10", "20", "50", "100"))
    right.set_xticks(range(0, 17, 2))
    right.set_xlabel("block")
    right.set_ylabel("effective rank of the bottleneck")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = experiment_parser(__file__, __doc__, **shortcuts.SIZES)
    parser.add_argument("--workdir", type=Path, default=Path("runs/shortcuts"))
    arguments = parser.parse_args()
    results = shortcuts.train(arguments)
    dataset = data.open_dataset("fashion_mnist")
    batches = data.eval_batches(dataset, "test", PICTURES, view=View(Pipeline(), (28, 28), 1))
    images = np.asarray(Preprocessing()(next(batches)["image"]))
    tensors = {
        arm: [
            batch_norm_outputs(arguments.workdir / arm / str(seed), images)
            for seed in results.results[arm]
        ]
        for arm in ("linear", "relu6")
    }
    first = arguments.workdir / "linear" / str(next(iter(results.results["linear"])))
    before = expansions(batch_norm_outputs(first, images, trained=False))
    after = expansions(tensors["linear"][0])
    narrow = bottlenecks(tensors["linear"], tensors["relu6"])
    table_of_positive(before, after).write(arguments.out)
    table_of_bottlenecks(narrow).write(arguments.out)
    draw((before, after), narrow, arguments.out / "activations.png")
    print(f"\nin {arguments.out}: the tables, activations.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
