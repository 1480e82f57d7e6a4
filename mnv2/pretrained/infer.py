"""Infers the network that tensors belong to, from the names and shapes of the tensors."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from mnv2.models import create_model, mobilenet_v1, mobilenet_v2
from mnv2.models.shapes import variable_shapes
from mnv2.pretrained.loaded import DenseHead, Pretrained
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note

# The published width multipliers come first: two width multipliers can give the same channels.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4, *(i / 100 for i in range(10, 201, 5)))


class DenseWeights(NamedTuple):
    """One dense layer of a user's head: its weights, and the activation that follows it."""

    kernel: np.ndarray
    bias: np.ndarray
    activation: str


class Usage(NamedTuple):
    """How the authors of weights use them: the fields of `Pretrained` with the same names."""

    preprocess: Preprocessing
    image_size: tuple[int, int] = (224, 224)
    class_names: tuple[str, ...] | None = None
    output: str = "softmax"


class FileContents(NamedTuple):
    """The contents of a file of weights.

    network  `mobilenet_v1` or `mobilenet_v2`
    arrays   arrays by path of this package, such as `params/block_3/expand/kernel`, in its layouts;
             a tensor without a path keeps its name and layout
    names    the name that the file gives to each path
    fields   the fields of the network that are the same in every file of this format
    usage    how the authors of the file evaluate
    head     dense layers over the pooled features that replace the network's own classifier
    """

    network: str
    arrays: Mapping[str, np.ndarray]
    names: Mapping[str, str]
    fields: Mapping[str, Any]
    usage: Usage
    head: Sequence[DenseWeights] = ()


def infer_network(contents: FileContents, source: str) -> Pretrained:
    """Builds the network of a file, with its weights. `source` names the file in messages.

    The shapes give the width multiplier, the rounding of channels and the number of classes.

    Raises UserError, with the names of the tensors that are missing, unexpected or misshapen.
    """
    arrays = dict(contents.arrays)
    if len(contents.head) == 1:
        arrays["params/classifier/kernel"] = contents.head[0].kernel
        arrays["params/classifier/bias"] = contents.head[0].bias
    classifier = arrays.get("params/classifier/kernel")
    fields = {
        **contents.fields,
        **_infer_scaling(contents, source),
        "num_classes": 0 if classifier is None else classifier.shape[-1],
    }
    model = create_model(contents.network, **fields)
    stem = arrays.get("params/stem/kernel")
    channels = 3 if stem is None or stem.ndim != 4 else stem.shape[2]
    preprocess = fit_channels(contents.usage.preprocess, channels, source)
    check_tensors(arrays, shapes_of(model, channels), source, contents.names)
    variables = to_variables(arrays)
    if len(contents.head) > 1:
        model, variables = _with_head(model, variables, contents.head, source)
    loaded = Pretrained(model, variables, *contents.usage._replace(preprocess=preprocess))
    names = loaded.class_names
    if names is None or len(names) == loaded.num_classes:
        return loaded
    note(f"{source}: its {len(names)} names of classes do not fit {loaded.num_classes} logits")
    return dataclasses.replace(loaded, class_names=None)


def fit_channels(preprocess: Preprocessing, channels: int, source: str) -> Preprocessing:
    """Returns the preprocessing for images with `channels` channels.

    Gray images get the average of the colours' mean and standard deviation, after a note. Raises
    UserError for images that are neither gray nor RGB.
    """
    if channels not in (1, 3):
        raise UserError(
            f"{source} takes images with {channels} channels; only gray (1) and RGB (3) can be used"
        )
    if {len(preprocess.mean), len(preprocess.std)} <= {1, channels}:
        return preprocess
    mean, std = (round(float(np.mean(x)), 4) for x in (preprocess.mean, preprocess.std))
    note(f"{source} takes gray images: assumed the colours' average, mean {mean} and std {std}")
    return dataclasses.replace(preprocess, mean=(mean,), std=(std,))


def to_variables(arrays: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Nests arrays by path into the variables of a network, in float32."""
    return unflatten_dict(
        {path: jnp.asarray(array, jnp.float32) for path, array in arrays.items()}, sep="/"
    )


def shapes_of(model: nn.Module, channels: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a network's variables by path, for images with `channels` channels."""
    variables = variable_shapes(model, channels)
    return {path: leaf.shape for path, leaf in flatten_dict(variables, sep="/").items()}


def check_tensors(
    arrays: Mapping[str, Any],
    expected: Mapping[str, tuple[int, ...]],
    source: str,
    names: Mapping[str, str],
) -> None:
    """Raises UserError unless `arrays` have exactly the `expected` paths and shapes.

    All numbers must be finite, too. The message gives the names of the missing, unexpected or
    misshapen tensors in the file.
    """
    for problem, paths in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("has unexpected tensors:", sorted(arrays.keys() - expected.keys())),
    ):
        if paths:
            named = first_few(names.get(path, path) for path in paths)
            raise UserError(f"{source} {problem} {named}")
    for path, shape in expected.items():
        if arrays[path].shape != shape:
            raise UserError(
                f"{source}: {names.get(path, path)} has shape {arrays[path].shape} "
                f"(h w i o, i o or c), expected {shape}"
            )
    for path in expected:
        _check_numbers(arrays[path], f"{source}: {names.get(path, path)}", path.endswith("bn/var"))


def _check_numbers(array: Any, what: str, is_variance: bool = False) -> None:
    """Raises UserError unless `array` has finite floating-point numbers, also as float32."""
    array = np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{what} has the type {array.dtype}, expected floating-point numbers")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        count = array.size - np.isfinite(array).sum()
        raise UserError(f"{what} is not finite in {count} of {array.size} numbers")
    if is_variance and (array < 0).any():
        raise UserError(f"{what} has negative variances")


def _infer_scaling(contents: FileContents, source: str) -> dict[str, Any]:
    """Finds the width multiplier and rounding that give the channels of the file.

    Several scalings can give the same channels in the blocks. The first one that also gives the
    channels of the stem and of the last convolution is preferred.
    """
    part = "project" if contents.network == "mobilenet_v2" else "pointwise"
    outputs = {}
    for path, array in contents.arrays.items():
        if match := re.fullmatch(rf"params/block_(\d+)/{part}/kernel", path):
            outputs[int(match[1])] = array.shape[-1]
    blocks = [outputs[i] for i in sorted(outputs)]
    candidates = [scaling for scaling in _known_scalings(contents) if scaling.blocks == blocks]
    if not candidates:
        raise UserError(
            f"{source} is not a {contents.network} of any known width multiplier: "
            f"its blocks have {blocks} channels"
        )
    ends = [
        contents.arrays[path].shape[-1] if path in contents.arrays else None
        for path in ("params/stem/kernel", "params/last_conv/kernel")
    ]
    return min(candidates, key=lambda scaling: scaling.ends != ends).fields


class _Scaling(NamedTuple):
    """The fields that scale a network, and the channels that they give."""

    fields: dict[str, Any]
    blocks: list[int]
    ends: list[int | None]  # of the stem and the last convolution; None if there is none


def _known_scalings(contents: FileContents) -> Iterator[_Scaling]:
    if contents.network == "mobilenet_v1":
        for width in WIDTHS:
            stem, *blocks = mobilenet_v1.scaled_channels(width)
            yield _Scaling({"width": width}, blocks, [stem, None])
        return
    repeats = contents.fields.get("repeats", mobilenet_v2.REPEATS)
    for rounding in mobilenet_v2.ROUNDINGS:
        for width in WIDTHS:
            channels = mobilenet_v2.scaled_channels(width, rounding)
            rows = zip(channels.rows, repeats, strict=True)
            blocks = [row for row, count in rows for _ in range(count)]
            fields = {"width": width, "rounding": rounding}
            yield _Scaling(fields, blocks, [channels.stem, channels.last])


def _with_head(
    model: nn.Module, variables: dict[str, Any], head: Sequence[DenseWeights], source: str
) -> tuple[nn.Module, dict[str, Any]]:
    layers = tuple((dense.kernel.shape[1], dense.activation) for dense in head)
    params = {"backbone": variables["params"]}
    for i, dense in enumerate(head):
        weights = {"kernel": dense.kernel, "bias": dense.bias}
        for name, array in weights.items():
            _check_numbers(array, f"{source}: the {name} of dense layer {i + 1} of its head")
        params[f"dense_{i}"] = {
            name: jnp.asarray(array, jnp.float32) for name, array in weights.items()
        }
    return DenseHead(model, layers), {
        "params": params,
        "batch_stats": {"backbone": variables["batch_stats"]},
    }
