"""Does training for 8 bits pay?

Trains the finished runs of two arms of a sweep on Fashion-MNIST on, in three ways
(experiments/paper/fake_quant.py): in float32, rounded with a scale for each output channel, and
with a scale for each kernel. Then it exports what came out in 8 bits, and evaluates the files on
the whole test split in LiteRT. Prints and writes, per arm, top-1 in float32; what 8 bits cost of
this network rounded after training, and of those rounded in it, in points, paired by seed; and on
how many test pictures JAX, which rounds in training, and LiteRT agree. The same command goes on
where it stopped.
"""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import matplotlib.figure
import numpy as np

from configs import finetune
from experiments.common.experiment import Table, experiment_parser, run
from experiments.paper import quantization
from experiments.paper.fake_quant import FakeQuant, without_ranges
from experiments.paper.quantization import DATA, FLOAT, POINTS, TICKS, Runs, costs, outputs, top1
from mnv2 import data, pretrained
from mnv2.pretrained import Pretrained
from mnv2.runtime.machine import keep_compiled_programs
from mnv2.sweeps.plan import resolve
from mnv2.sweeps.report import plus_minus
from mnv2.training.config import from_config
from mnv2.training.feed import create_feed
from mnv2.training.setup import set_up, steps_of
from mnv2.training.state import create_state, with_weights
from mnv2.training.step import replicate

BATCH = 500
ARMS = ("linear", "relu6")
GRANULARITIES = {"channel": "LiteRT, channel", "tensor": "LiteRT, tensor"}
WAYS = tuple(f"{when}_{granularity}" for granularity in GRANULARITIES for when in ("after", "in"))


def trained(loaded: Pretrained, weights: Path, seed: int, steps: int) -> Iterator[tuple[Any, Any]]:
    """Trains a network on, with the same batches in the three ways: float32, channel, tensor.

    Yields each network, the last two rounding, with its variables. Fashion-MNIST without
    augmentation, batches of 128, rates from 0.01 to 0 along a cosine.
    """
    config = finetune.get_config()
    config.model.dropout = 0.0
    config.data.update(name=DATA, validation=5000, image_size=28, train="")
    config.optimization.update(learning_rate=0.01, backbone_rate=1.0)
    config.update(weights=str(weights), seed=seed, batch_size=128, duration=f"{steps} steps")
    settings = from_config(resolve(config, "finetune"))
    setup = set_up(settings)
    for granularity in ("float32", *GRANULARITIES):
        model: Any = setup.model
        if granularity in GRANULARITIES:
            model = FakeQuant(model, granularity)
        examples = setup.dataset.num_examples("train")
        of_model = steps_of(settings, model, setup.preprocess, total_steps=steps, examples=examples)
        fresh = create_state(model, of_model.optimizer, setup.image_shape, seed=seed, ema=False)
        state = replicate(with_weights(fresh, loaded))
        feed, done = create_feed(setup._replace(steps=of_model), settings, 0), 0
        while done < steps:
            call = feed.next(steps - done, 0)
            state, _ = call.program(state, *call.arguments)
            done += call.steps
        yield model, jax.device_get(state).variables()


def evaluate(weights: Path, dataset: data.Dataset, steps: int) -> dict[str, float]:
    """Returns what comes out of one run in per cent: accuracies, by WAYS, and agreements."""
    images = dataset.arrays("test")[0]
    parts = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    loaded = pretrained.load(weights)
    (_, variables), *rounding = trained(loaded, weights, int(weights.name), steps)
    forms = (FLOAT, *GRANULARITIES.values())
    plain = outputs(dataclasses.replace(loaded, variables=variables), dataset, forms)
    found = {"float32": top1(plain[FLOAT], dataset)}
    for (granularity, form), (model, variables) in zip(
        GRANULARITIES.items(), rounding, strict=True
    ):
        rounded = dataclasses.replace(loaded, variables=without_ranges(variables))
        in_litert = outputs(rounded, dataset, (form,))[form]
        compute = jax.jit(functools.partial(model.apply, variables))
        in_jax = np.concatenate([np.asarray(compute(loaded.preprocess(part))) for part in parts])
        same = in_jax.argmax(-1) == in_litert.argmax(-1)
        found[f"after_{granularity}"] = top1(plain[form], dataset)
        found[f"in_{granularity}"] = top1(in_litert, dataset)
        found[f"agreement_{granularity}"] = 100 * float(np.mean(same))
    return found


def table_of(runs: Runs) -> Table:
    lines = []
    for arm, found in costs(runs, "float32").items():
        of_arm = [run for run in runs if run["arm"] == arm]
        agreements = [[run[f"agreement_{one}"] for one in GRANULARITIES] for run in of_arm]
        agreement = " / ".join(f"{mean:.1f}" for mean in np.mean(agreements, axis=0))
        costs_of_ways = (plus_minus(found[way], "+") for way in WAYS)
        base = found["float32"]
        lines.append([arm, str(base.count), plus_minus(base), *costs_of_ways, agreement])
    header = (
        *("arm", "seeds", "float32, top-1 %"),
        *("channel, after", "channel, in training", "kernel, after", "kernel, in training"),
        "agreement of JAX and LiteRT, %",
    )
    return Table("quantized_training", header, lines)


def draw(runs: Runs, path: Path) -> None:
    """Draws what 8 bits cost after training and in it: a line per seed, a panel per arm."""
    arms = quantization.arms_of(runs)
    figure = matplotlib.figure.Figure(figsize=(2 + 2.4 * len(arms), 3.6), layout="constrained")
    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    lowest = -1.0
    for of_run in runs:
        axes = panels[arms.index(of_run["arm"])]
        points = [of_run[way] - of_run["float32"] for way in WAYS]
        lowest = min(lowest, *points)
        for start, of_granularity in ((0, points[:2]), (3, points[2:])):
            axes.plot([start, start + 1], of_granularity, "o-", color="black", fillstyle="none")
        axes.set_title(of_run["arm"], fontsize=10)
    where = "rounded after or in training\n(left: a scale per channel, right: per kernel)"
    for axes in panels:
        axes.axhline(0, color="0.8", zorder=0)
        axes.set_xticks([0, 1, 3, 4], ["after", "in", "after", "in"])
        axes.set_xlabel(where, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(POINTS)
    panels[0].set_yscale("symlog", linthresh=1)
    panels[0].set_yticks(TICKS, map(str, TICKS))
    panels[0].set_ylim(1.5 * lowest, 1)
    panels[0].minorticks_off()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = experiment_parser(__file__, __doc__, steps=200, workdir="runs/v2_ablation")
    arguments = parser.parse_args()
    keep_compiled_programs()
    out = arguments.out
    evaluated = functools.partial(evaluate, steps=arguments.steps)
    runs = quantization.measure(arguments.workdir, out, evaluated, ARMS)
    table_of(runs).write(out, runs)
    draw(runs, out / "quantized_training.png")
    print(f"\nin {out}: quantized_training.csv, quantized_training.md, quantized_training.png")


if __name__ == "__main__":
    run(main)
