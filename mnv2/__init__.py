"""MobileNetV2 and its ablations in JAX and Flax.

>>> network = mnv2.load("weights/fashion_mnist/network.safetensors")
>>> mnv2.predict(network, ["weights/fashion_mnist/pictures"], top=3)
>>> mnv2.evaluate(network, "fashion_mnist")["accuracy"]
>>> mnv2.export("weights/fashion_mnist/network.safetensors", ["onnx"], "runs/network.onnx")
>>> mnv2.train(config, "runs/ablation")

These do what the commands of the same names do. They raise UserError for bad input.
"""

import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # these import JAX, which commands do not wait for
    from mnv2.deployment.exported import Exported
    from mnv2.pretrained import Pretrained

__version__ = "0.2.0"


def load(weights: str | Path, **options: Any) -> "Pretrained | Exported":
    """Opens weights of any framework, the folder of a run, or an exported file.

    `options` are image_size, resize, mean, std and classes, as the options of `mnv2.predict`: see
    `mnv2.deployment.usage.open_weights`.
    """
    from mnv2.deployment.usage import open_weights

    return open_weights(weights, **options)


def predict(
    network: "Pretrained | Exported", pictures: Sequence[str | Path], *, top: int = 5
) -> list[tuple[Path, dict[str, float]]]:
    """Returns for each picture the probabilities of its `top` most probable classes.

    `pictures` are files, or folders with pictures at any depth.
    """
    from mnv2.predict import find_pictures, most_probable, predictions, read_pictures

    paths = find_pictures([Path(picture) for picture in pictures])
    every = predictions(network, read_pictures(paths, []), len(paths))
    return [
        (prediction.path, dict(most_probable(prediction.probabilities, network.display_names, top)))
        for batch in every
        for prediction in batch
    ]


def evaluate(
    network: "Pretrained | Exported",
    dataset: str,
    *,
    split: str = "test",
    data_dir: str | None = None,
    batch_size: int = 100,
    on_broken: str = "stop",
) -> dict[str, float]:
    """Returns loss, accuracy, top5_accuracy and examples, each example of the split counted once.

    `dataset` is a TFDS classification set, or folder:PATH.
    """
    from mnv2 import data
    from mnv2.deployment.evaluation import evaluate_any
    from mnv2.training.classes import match_classes

    opened = data.open_dataset(dataset, data_dir, on_broken=on_broken)
    matched = match_classes(network, opened, "the network")
    return evaluate_any(matched, opened, split, batch_size)[0]


def export(
    weights: str | Path, to: Sequence[str], output: str | Path = "runs/export", **options: Any
) -> dict[str, Path]:
    """Writes weights in formats such as litert or onnx, and returns the path of each file.

    `options` are those of the command and of `load`, where `batch` is None for any: see
    `mnv2.deployment.export.export`.
    """
    from mnv2.deployment.export import export

    return export(weights, to, Path(output), **options)[0]


def train(config: Any, workdir: Any, *only: str, reports: bool = True) -> None:
    """Executes the runs of a config that are not finished in this process, as in a notebook.

    One run after another, in `workdir`; `only` names arms, or runs as arm/seed. Raises UserError if
    the config describes no runs, and RunsFailed at the end if any of them failed.
    """
    from mnv2.runtime.cli import silence_libraries
    from mnv2.runtime.files import as_path

    silence_libraries()
    from mnv2.sweeps.run import train_here  # imports JAX and TensorFlow

    train_here(config, as_path(workdir), only, reports=reports)


class _Package(types.ModuleType):
    """Lets `mnv2.predict` be the function, also after the command's module was imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, types.ModuleType) and callable(getattr(self, name, None))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
