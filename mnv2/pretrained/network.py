"""From named tensors to the network whose they are."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike

from mnv2.errors import UserError
from mnv2.models import create_model, make_divisible
from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import CHANNELS as V2_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS

# Widths that were published first, so that of two which give the same channels they are taken.
WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.3, 1.4, *(i / 100 for i in range(10, 201, 5)))


@dataclasses.dataclass(frozen=True)
class Tensors:
    """What a file holds, under this package's names and in its layouts.

    `arrays` maps paths such as `params/block_3/expand/kernel` to arrays; `fields` are those of the
    network which the file's family sets: padding and the constants of batch norm.
    """

    network: str
    arrays: Mapping[str, np.ndarray]
    fields: Mapping[str, Any]
    preprocess: Callable[[ArrayLike], jax.Array]


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with weights, and what it expects of images (RGB, [0, 255])."""

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Callable[[ArrayLike], jax.Array]


def assemble(tensors: Tensors, source: str) -> Pretrained:
    """Finds width and classes from shapes. Raises UserError, naming the tensors that are off."""
    arrays = dict(tensors.arrays)
    classifier = arrays.get("params/classifier/kernel")
    fields = {
        **tensors.fields,
        "num_classes": 0 if classifier is None else classifier.shape[-1],
        "width": _width(tensors.network, arrays, source),
    }
    model = create_model(tensors.network, **fields)
    stem = arrays["params/stem/kernel"]
    image = jax.ShapeDtypeStruct((1, 96, 96, stem.shape[2]), np.float32)
    expected = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")
    _check(arrays, {name: leaf.shape for name, leaf in expected.items()}, source)
    variables = unflatten_dict(
        {name: jax.numpy.asarray(array, np.float32) for name, array in arrays.items()}, sep="/"
    )
    return Pretrained(model, variables, tensors.preprocess)


def _width(network: str, arrays: Mapping[str, np.ndarray], source: str) -> float:
    """The width multiplier that gives the file's numbers of channels."""
    last = "project" if network == "mobilenet_v2" else "pointwise"
    found = {}
    for name, array in arrays.items():
        if match := re.fullmatch(rf"params/block_(\d+)/{last}/kernel", name):
            found[int(match[1])] = array.shape[-1]
    channels = [found[i] for i in sorted(found)]
    for width in WIDTHS:
        if channels == _channels(network, width):
            return width
    raise UserError(
        f"{source} is no {network} of any width: its blocks have {channels} output channels"
    )


def _channels(network: str, width: float) -> list[int]:
    if network == "mobilenet_v1":
        return [max(8, int(c * width)) for c in V1_CHANNELS]
    rows = zip(V2_CHANNELS, REPEATS, strict=True)
    return [make_divisible(c * width) for c, repeats in rows for _ in range(repeats)]


def _check(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], source: str
) -> None:
    for what, names in (
        ("lacks", sorted(expected.keys() - arrays.keys())),
        ("holds the unknown", sorted(arrays.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"{source} {what} {', '.join(names[:3])}{more}")
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            raise UserError(f"{source}: {name} has shape {arrays[name].shape}, expected {shape}")
