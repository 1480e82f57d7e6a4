"""Infers the network that tensors belong to, from the names and shapes of the tensors."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from mnv2.models import create_model, mobilenet_v1, mobilenet_v2
from mnv2.models.shapes import variable_shapes
from mnv2.pretrained import imagenet
from mnv2.pretrained.loaded import DenseHead, Pretrained
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note

# The published width multipliers come first: two width multipliers can give the same channels.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4, *(i / 100 for i in range(10, 201, 5)))


class Usage(NamedTuple):
    """How the authors of weights use them: the fields of `Pretrained` with the same names."""

    preprocess: Preprocessing
    image_size: tuple[int, int] = (224, 224)
    class_names: tuple[str, ...] | None = None
    output: str = "softmax"


class FileContents(NamedTuple):
    """The contents of a file of weights.

    network      `mobilenet_v1` or `mobilenet_v2`
    arrays       arrays by path of this package, such as `params/block_3/expand/kernel`, in its
                 layouts; a tensor without a path keeps its name and layout
    names        the name that the file gives to each path
    fields       the fields of the network that are the same in every file of this format
    usage        how the authors of the file evaluate
    head         the layers of a `DenseHead`, whose arrays are `params/dense_0/kernel`, ...
    own_classes  the classes are a user's own: 1000 of them are not those of ImageNet
    """

    network: str
    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    fields: Mapping[str, Any]
    usage: Usage
    head: tuple[tuple[int, str], ...] = ()
    own_classes: bool = False


def infer_network(contents: FileContents, source: str) -> Pretrained:
    """Builds the network of a file, with its weights. `source` names the file in notes.

    The shapes give the width multiplier, the rounding of channels and the number of classes.

    Raises UserError, with the names of the tensors that are missing, unexpected or misshapen.
    """
    arrays, names = contents.arrays, contents.names
    classifier = arrays.get("params/classifier/kernel")
    scaling = _infer_scaling(contents)
    classes = 0 if classifier is None else classifier.shape[-1]
    model = create_model(contents.network, **contents.fields, **scaling, num_classes=classes)
    if contents.head:
        model = DenseHead(model, contents.head)
        arrays = {_within_head(path): array for path, array in arrays.items()}
        names = {_within_head(path): name for path, name in names.items()}
    loaded = restore(model, arrays, contents.usage, names)
    if (preprocess := loaded.preprocess) != contents.usage.preprocess:
        mean, std = preprocess.mean[0], preprocess.std[0]
        note(f"{source} takes gray images: assumed the colours' average, mean {mean} and std {std}")
    labels, count = loaded.class_names, loaded.num_classes
    if labels is None and not contents.own_classes:
        labels = imagenet.class_names(count)
    elif labels is not None and len(labels) != count:
        note(f"{source}: its {len(labels)} names of classes do not fit {count} logits")
        labels = None
    return dataclasses.replace(loaded, class_names=labels)


def _within_head(path: str) -> str:
    """Returns the path in a `DenseHead` of a variable that belongs to it or to its backbone."""
    return re.sub(r"^(params|batch_stats)/(?!dense_)", r"\1/backbone/", path)


def restore(
    model: nn.Module, arrays: Mapping[str, ArrayLike], usage: Usage, names: Mapping[str, str]
) -> Pretrained:
    """Gives a network its weights: arrays by path, which become float32.

    Raises UserError as `check_tensors` does, and for images that are neither gray nor RGB.
    """
    stem: Any = arrays.get("params/stem/kernel", arrays.get("params/backbone/stem/kernel"))
    channels = 3 if np.ndim(stem) != 4 else np.shape(stem)[2]
    preprocess = _fit_channels(usage.preprocess, channels)
    check_tensors(arrays, shapes_of(model, channels), names)
    variables = {path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}
    usage = usage._replace(preprocess=preprocess)
    return Pretrained(model, unflatten_dict(variables, sep="/"), *usage)


def _fit_channels(preprocess: Preprocessing, channels: int) -> Preprocessing:
    """Returns the preprocessing for images with `channels` channels; gray ones get averages.

    Raises UserError for images that are neither gray nor RGB.
    """
    if channels not in (1, 3):
        raise UserError(
            f"it takes images with {channels} channels; only gray (1) and RGB (3) are read"
        )
    if {len(preprocess.mean), len(preprocess.std)} <= {1, channels}:
        return preprocess
    mean, std = (round(float(np.mean(x)), 4) for x in (preprocess.mean, preprocess.std))
    return dataclasses.replace(preprocess, mean=(mean,), std=(std,))


def shapes_of(model: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's variables by path, for images with `channels` channels."""
    variables = variable_shapes(model, channels)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def check_tensors(
    arrays: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]], names: Mapping[str, str]
) -> None:
    """Raises UserError, with `names`, unless `arrays` have the `expected` paths and shapes.

    All numbers must be finite, also as float32.
    """
    for problem, paths in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("has unexpected tensors:", sorted(arrays.keys() - expected.keys())),
    ):
        if paths:
            named = first_few(names.get(path, path) for path in paths)
            raise UserError(f"it {problem} {named}")
    for path, shape in expected.items():
        array, what = np.asarray(arrays[path]), names.get(path, path)
        if array.shape != shape:
            raise UserError(f"{what} has shape {array.shape} (h w i o, i o or c), expected {shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(f"{what} has the type {array.dtype}, expected floating-point numbers")
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        if count := array.size - np.isfinite(array).sum():
            raise UserError(f"{what} is not finite in {count} of {array.size} numbers")
        if path.endswith("bn/var") and (array < 0).any():
            raise UserError(f"{what} has negative variances")


def _infer_scaling(contents: FileContents) -> dict[str, Any]:
    """Finds the width multiplier and rounding that give the channels of the file.

    Of several, the first one that also gives those of the stem and of the last convolution.
    """
    kernels = {x: y for x, y in contents.arrays.items() if x.endswith("/kernel")}
    channels = {x: kernels[x].shape[-1] for x in contents.names if x in kernels}
    blocks = [channels[x] for x in channels if x.endswith(("/project/kernel", "/pointwise/kernel"))]
    candidates = [scaling for scaling in _known_scalings(contents) if scaling[1] == blocks]
    if not candidates:
        raise UserError(
            f"it is no {contents.network} of a known width: its blocks have {blocks} channels"
        )
    ends = [channels.get(path) for path in ("params/stem/kernel", "params/last_conv/kernel")]
    return min(candidates, key=lambda scaling: scaling[2] != ends)[0]


def _known_scalings(
    contents: FileContents,
) -> Iterator[tuple[dict[str, Any], list[int], list[int | None]]]:
    """Yields fields, and the channels of the blocks, and of the stem and the last convolution."""
    if contents.network == "mobilenet_v1":
        for width in WIDTHS:
            stem, *blocks = mobilenet_v1.scaled_channels(width)
            yield {"width": width}, blocks, [stem, None]
        return
    repeats = contents.fields.get("repeats", mobilenet_v2.REPEATS)
    for rounding in mobilenet_v2.ROUNDINGS:
        for width in WIDTHS:
            stem, rows, last = mobilenet_v2.scaled_channels(width, rounding)
            blocks = [row for row, count in zip(rows, repeats, strict=True) for _ in range(count)]
            yield {"width": width, "rounding": rounding}, blocks, [stem, last]
