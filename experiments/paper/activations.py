"""What does ReLU6 destroy in each layer of a network? Figure 7 of the MobileNetV2 paper, and more.

Analyses the linear and the ReLU6 networks of `experiments.paper.shortcuts` on 1,000 test pictures
of Fashion-MNIST; if they are not there, they are trained first. Draws the positive channels after
each expansion, over places in the image, before and after training. If more than 1/t of them are
positive, the narrow input could be recovered. Tabulates the narrow output of each block: the number
of directions that it spreads over (effective rank) with a linear bottleneck, and before and after
ReLU6; the shares of values that ReLU6 cuts to 0 and to 6, and the share of dead channels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from scipy import stats

from experiments.common.experiment import Table, experiment_parser, run
from experiments.common.networks import unoptimised
from experiments.paper import shortcuts
from mnv2 import data, pretrained
from mnv2.models import blocks
from mnv2.ops import relu6
from mnv2.pretrained import Preprocessing
from mnv2.runtime.machine import keep_freed_memory
from mnv2.sweeps.report import with_half_width
from mnv2.sweeps.statistics import Estimate

PICTURES = 1000
BLOCKS = range(17)
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
        layer = context.module
        if not isinstance(layer, blocks.ConvBN) or context.method_name != "__call__":
            return following(*args, **kwargs)
        activation = layer.activation
        object.__setattr__(layer, "activation", blocks.linear)  # Flax's modules cannot be changed
        output = following(*args, **kwargs)
        object.__setattr__(layer, "activation", activation)
        if layer.batch_norm:
            found.setdefault("/".join(layer.path), output)
        return activation(output)

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


def batch_norm_outputs(folder: Path, images: np.ndarray, trained: bool = True) -> dict[str, Any]:
    """Returns the output of each batch norm of a finished run, by the path of its layer.

    With the weights that the run began with, unless they shall be `trained`.
    """
    loaded = pretrained.load(folder)
    model, variables = loaded.model, loaded.variables
    if not trained:
        variables = unoptimised(model.init)(jax.random.key(int(folder.name)), images[:1])
    apply = jax.jit(lambda x: before_activation(model, variables, x, train=not trained))
    return apply(jnp.asarray(images))


def of_blocks(tensors: Mapping[str, Any], layer: str) -> dict[int, Any]:
    """Returns the tensor of one layer of each block, by the number of the block, in order."""
    paths = {number: f"block_{number}/{layer}" for number in BLOCKS}
    return {number: tensors[path] for number, path in paths.items() if path in tensors}


def ranks(
    seeds: Sequence[Mapping[str, Any]], change: Callable[[Any], Any] = np.asarray
) -> list[Any]:
    """Estimates the effective rank of each block's narrow output, which is changed before."""
    outputs = [of_blocks(tensors, "project") for tensors in seeds]
    return [
        Estimate.of([effective_rank(change(of_seed[block])) for of_seed in outputs])
        for block in BLOCKS
    ]


def table_of(spread: Mapping[str, Sequence[Any]], inputs: Sequence[Sequence[Activity]]) -> Table:
    lines = []
    for block, linear, before, after in zip(BLOCKS, *spread.values(), strict=True):
        of_seeds = [of_seed[block] for of_seed in inputs]
        cut, saturated, dead = np.mean([one[-3:] for one in of_seeds], axis=0)
        lines.append(
            (
                *(f"block_{block}", of_seeds[0].channels),
                with_half_width(linear.mean, linear.half_width, digits=1),
                f"{before.mean:.1f}",
                with_half_width(after.mean, after.half_width, digits=1),
                *(f"{cut:.0f}", f"{saturated:.1f}", f"{dead:.1f}"),
            )
        )
    header = (
        *("bottleneck of", "channels", "rank, linear", "rank before ReLU6", "rank after ReLU6"),
        *("cut to 0, %", "cut to 6, %", "dead channels, %"),
    )
    return Table("bottlenecks", header, lines)


def draw_positive(axis: Axes, title: str, found: Mapping[int, Activity]) -> None:
    _, means, deviations, fewest, most, *_ = zip(*found.values(), strict=True)
    axis.fill_between(list(found), fewest, most, color="0.9", label="range")
    label = "mean ± standard deviation"
    axis.errorbar(list(found), means, deviations, color="k", marker="o", capsize=2, label=label)
    axis.axhline(THRESHOLD, color="k", linestyle=":", label="1/t: invertible above")
    axis.set(title=title, xlabel="block", xticks=BLOCKS[::2], ylim=(0, 100))


def draw_ranks(axis: Axes, spread: Mapping[str, Sequence[Any]], channels: Sequence[int]) -> None:
    for (label, estimates), style, fill in zip(
        spread.items(), ("k-s", "k--v", "k:o"), "kww", strict=True
    ):
        means = [estimate.mean for estimate in estimates]
        axis.plot(BLOCKS, means, style, markerfacecolor=fill, label=label)
    axis.step(BLOCKS, channels, where="mid", color="0.6", label="channels")
    axis.set(xlabel="block", ylabel="effective rank of the bottleneck", yscale="log")
    axis.set_xticks(BLOCKS[::2])
    axis.set_yticks((2, 5, 10, 20, 50, 100), ("2", "5", "10", "20", "50", "100"))
    axis.legend(fontsize="small")


def main() -> None:
    parser = experiment_parser(__file__, __doc__, workdir="runs/shortcuts", **shortcuts.SIZES)
    arguments = parser.parse_args()
    shortcuts.train(arguments)
    dataset = data.open_dataset("fashion_mnist")
    images = np.asarray(Preprocessing()(dataset.arrays("test")[0][:PICTURES]))
    linear, with_relu6 = (
        [
            batch_norm_outputs(arguments.workdir / arm / str(seed), images)
            for seed in range(arguments.seeds)
        ]
        for arm in ("linear", "relu6")
    )
    new = batch_norm_outputs(arguments.workdir / "linear" / "0", images, trained=False)
    spread = {
        "linear": ranks(linear),
        "ReLU6: before it": ranks(with_relu6),
        "ReLU6: after it": ranks(with_relu6, relu6),
    }
    inputs = [
        [activity(tensor) for tensor in of_blocks(tensors, "project").values()]
        for tensors in with_relu6
    ]
    table_of(spread, inputs).write(arguments.out)
    figure = matplotlib.figure.Figure(figsize=(12, 4), layout="constrained")
    before, after, right = figure.subplots(1, 3)
    for axis, title, tensors in (
        (before, "before training", new),
        (after, "after training", linear[0]),
    ):
        expansions = {i: activity(x) for i, x in of_blocks(tensors, "expand").items()}
        fewest = min(one.fewest for one in expansions.values())
        print(f"positive channels after an expansion, {title}: at least {fewest:.0f} %")
        draw_positive(axis, title, expansions)
    before.set_ylabel("positive channels after expansion, %")
    before.legend(fontsize="small")
    draw_ranks(right, spread, [one.channels for one in inputs[0]])
    figure.savefig(arguments.out / "activations.png", dpi=110)
    print(f"\nin {arguments.out}: bottlenecks.md, activations.png")


if __name__ == "__main__":
    keep_freed_memory()
    run(main)
