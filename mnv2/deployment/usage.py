"""Opens weights of any kind, an exported file too, with what the file does not tell."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from mnv2.deployment.exported import Exported, is_exported, open_exported
from mnv2.deployment.options import read_class_names
from mnv2.pretrained import Preprocessing, Pretrained, load
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note


def open_weights(
    weights: str | Path,
    *,
    image_size: tuple[int, int] | None = None,
    resize: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: str | Path | Sequence[str] | None = None,
) -> Pretrained | Exported:
    """Opens weights that classify, or an exported file.

    weights     anything that `mnv2.pretrained.load` reads, or a .tflite or .onnx file
    image_size  (height, width) of what the network sees
    resize      a view of pictures by its name, or the text of one
    mean, std   the network gets (x - mean) / std with x in [0, 1]; one number, or one per channel
    classes     names of the classes, in order, or a file with them

    What is None is as the file tells. Raises UserError if the file cannot be read or has no
    classifier, and for a value that is wrong or does not suit the file.
    """
    if resize is not None:
        Preprocessing().with_view(resize)  # raises before a large file is read
    if is_exported(weights):
        network: Pretrained | Exported = open_exported(weights)
        for name, value in (("image_size", image_size), ("mean", mean), ("std", std)):
            if value is not None:
                raise UserError(f"{name} is fixed in the exported file {weights}: export it again")
    else:
        network = _rescaled(load(weights), mean, std)
        if not network.num_classes:
            raise UserError(f"{weights} holds no classifier: fine-tune it first")
        if image_size is not None:
            network = dataclasses.replace(network, image_size=image_size)
    if resize is not None:
        network = dataclasses.replace(network, preprocess=network.preprocess.with_view(resize))
    if isinstance(classes, str | Path):
        return network.with_class_names(read_class_names(Path(classes)), str(classes))
    return network if classes is None else network.with_class_names(list(classes), "classes")


def _rescaled(
    loaded: Pretrained, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Pretrained:
    """Returns weights that take pixels with this mean and deviation."""
    if mean is None or std is None:
        if mean is not std:
            raise UserError("mean and std belong together: give both, or neither")
        return loaded
    if 0.0 in std:
        raise UserError("std must not be 0")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, loaded.channels):
            raise UserError(
                f"{name} has {len(values)} numbers but the network has {loaded.channels} channels"
            )
    scaled = dataclasses.replace(loaded.preprocess, mean=tuple(mean), std=tuple(std), assumed=False)
    return dataclasses.replace(loaded, preprocess=scaled)


def describe_input(
    preprocess: Preprocessing, image_size: tuple[int, int], scaling_given: bool
) -> None:
    """Says in two lines what the network sees of a picture, and how pixels are scaled."""
    note(preprocess.describe_view(image_size))
    note(preprocess.describe_pixels("as you say" if scaling_given else None))
