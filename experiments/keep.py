"""Keeps a finished run as a small folder: python -m experiments.keep RUN weights/NAME

For a run of configs/v2_ablation.py:hour, such as runs/v2_ablation-hour/linear/0. Writes:

    network.safetensors   the weights in evaluation, for every command of this package
    metrics.jsonl         the log of the training
    config.json, environment.json, result.json   what was trained, where, and the test result
    curves.png            loss and accuracy during training
    pictures/             the first test picture of some classes
    README.md             the model card: what it is, how good it is for each class, what it is for
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from PIL import Image

from configs import v2_ablation
from mnv2 import data, pretrained
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, read_lines, to_json, write_text
from mnv2.runtime.layout import CONFIG, ENVIRONMENT, METRICS, RESULT
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import load, read_result
from mnv2.training.evaluation import evaluate_weights

PICTURES = 4  # of different classes

CARD = """# {title}

MobileNetV2 with width {width:g}, trained on Fashion-MNIST from scratch for {duration} of {batch}
pictures by

```sh
python -m mnv2.main --config configs/v2_ablation.py:hour --only {arm}
```

It is seed {seed} of the arm `{arm}`, which was chosen because it is the first, not because it is
the best: the arm has {estimate} % with {seeds} seeds.

| | |
|---|--:|
| test top-1, % | {accuracy:.2f} |
| test top-5, % | {top5:.2f} |
| test loss | {loss:.4f} |
| parameters | {parameters:,} |
| multiply-adds | {multiply_adds:,} |
| size of the file, kB | {kilobytes:,.0f} |

![Loss and accuracy during training](curves.png)

| class | test pictures of it that are recognised, % |
|---|--:|
{classes}

## What it is for

To try this package's commands without training first, and to compare a change with. It takes gray
pictures of 28 x 28 pixels of one piece of clothing, light on black, as Fashion-MNIST has them. It
is of no use for photographs: whatever it is given, it names one of the ten classes.

## Data

Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT license): 55,000 pictures for
training, 5,000 of its training split for validation, and its 10,000 test pictures for the numbers
above. The pictures in `pictures/` are the first test pictures of their classes.
"""


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws loss and accuracy of training and validation, from the lines of a log."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    for axis, name, factor in zip(
        figure.subplots(1, 2), ("loss", "accuracy"), (1, 100), strict=True
    ):
        for split, style in (("train", "-"), ("validation", "s--"), ("test", "^")):
            found = [line for line in lines if f"{split}/{name}" in line]
            values = [factor * line[f"{split}/{name}"] for line in found]
            steps = [line["step"] for line in found]
            axis.plot(steps, values, style, color="black", markerfacecolor="white", label=split)
        axis.set_xlabel("training steps")
        axis.set_ylabel("loss" if name == "loss" else "top-1 accuracy, %")
        axis.legend()
    figure.savefig(path, dpi=100)


def write_pictures(dataset: data.Dataset, names: Sequence[str], folder: Path) -> None:
    """Writes the first test picture of each of some classes, named after its class."""
    images, labels = (np.asarray(array) for array in dataset.arrays("test"))
    folder.mkdir(parents=True, exist_ok=True)
    for label in np.linspace(0, len(names) - 1, PICTURES, dtype=int):
        first = images[int(np.argmax(labels == label))]
        name = names[label].lower().replace("/", "_").replace(" ", "_")
        Image.fromarray(first[..., 0]).save(folder / f"{name}.png")


def _check_run(of_run: Path, config: dict[str, Any]) -> None:
    """Raises UserError unless a run is what the card says: the first seed of an arm of :hour."""
    named, (arm, seed) = with_arms(v2_ablation.get_config("hour")), of_run.parts[-2:]
    known = arm in dict(named.arms)
    expected = resolve(named, arm).to_dict() if known else {}
    seedless = {name: expected.get(name) for name in ("seed", "seeds")}  # they may differ
    if json.loads(to_json(expected)) != {**config, **seedless}:
        raise UserError(f"{of_run} is no run of configs/v2_ablation.py:hour, which the card names")
    if seed != str(named.seed):
        raise UserError(f"{of_run} must be the first seed, {named.seed}, as the card says")


def main() -> None:
    parser = command_parser("experiments.keep", __doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    folder, of_run = arguments.folder, arguments.run.absolute()
    arm, seed = of_run.parts[-2:]
    result, config = read_result(of_run / RESULT), read_json(of_run / CONFIG, "train it again")
    _check_run(of_run, config)
    loaded = pretrained.load(of_run)
    dataset = data.open_dataset(config["data"]["name"], config["data"]["dir"])
    folder.mkdir(parents=True, exist_ok=True)
    pretrained.save(loaded, folder / "network.safetensors")
    for name in (METRICS, CONFIG, ENVIRONMENT, RESULT):
        shutil.copy(of_run / name, folder / name)
    draw(read_lines(of_run / METRICS), folder / "curves.png")
    write_pictures(dataset, loaded.display_names, folder / "pictures")
    _, matrix = evaluate_weights(loaded, dataset, "test", 500)
    recalls = 100 * np.diag(matrix) / matrix.sum(axis=1)
    accuracies = load(of_run.parents[1]).accuracies(arm)
    card = CARD.format(
        title=f"MobileNetV2 {config['model']['width']:g} on Fashion-MNIST",
        width=config["model"]["width"],
        duration=config["duration"],
        batch=config["batch_size"],
        arm=arm,
        seed=seed,
        seeds=len(accuracies),
        estimate=plus_minus(Estimate.of(list(accuracies.values()))),
        accuracy=100 * result["test"]["accuracy"],
        top5=100 * result["test"]["top5_accuracy"],
        loss=result["test"]["loss"],
        parameters=result["parameters"],
        multiply_adds=result["multiply_adds"],
        kilobytes=(folder / "network.safetensors").stat().st_size / 1000,
        classes="\n".join(
            f"| {name} | {recall:.1f} |"
            for name, recall in zip(loaded.display_names, recalls, strict=True)
        ),
    )
    write_text(folder / "README.md", card)
    print(card)


if __name__ == "__main__":
    run(main)
