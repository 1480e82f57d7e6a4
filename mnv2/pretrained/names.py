"""The names of tensors: the paths of this package, and the names that other formats use.

A path of this package is `params/block_3/expand/kernel`; its module is `block_3/expand`. A format
is described by the names of its layers and by one suffix per variable.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS

NUM_BLOCKS = {"mobilenet_v1": len(V1_CHANNELS), "mobilenet_v2": sum(REPEATS)}

# Maps a module to a format's names of its convolution (or dense layer) and its batch norm.
LayerNames = Callable[[str], tuple[str, str]]


class VariableSuffixes(NamedTuple):
    """What a format appends to the name of a layer to name its variables, with the separator."""

    kernel: str
    bias: str
    bn_scale: str
    bn_bias: str
    bn_mean: str
    bn_var: str


def module_paths(network: str, num_blocks: int) -> Iterator[str]:
    """Yields the modules of a network's convolutions, in order, and then `classifier`."""
    yield "stem"
    for i in range(num_blocks):
        if network == "mobilenet_v1":
            parts: tuple[str, ...] = ("depthwise", "pointwise")
        else:
            parts = ("depthwise", "project") if i == 0 else ("expand", "depthwise", "project")
        yield from (f"block_{i}/{part}" for part in parts)
    if network == "mobilenet_v2":
        yield "last_conv"
    yield "classifier"


def tensor_names(
    network: str,
    num_blocks: int,
    layer_names: LayerNames,
    suffixes: VariableSuffixes,
    has_classifier: bool = True,
) -> dict[str, str]:
    """Maps the path of every tensor in this package to the name of that tensor in a format."""
    names = {}
    for module in module_paths(network, num_blocks):
        layer, batch_norm = layer_names(module)
        if module != "classifier":
            names[f"params/{module}/kernel"] = layer + suffixes.kernel
            names[f"params/{module}/bn/scale"] = batch_norm + suffixes.bn_scale
            names[f"params/{module}/bn/bias"] = batch_norm + suffixes.bn_bias
            names[f"batch_stats/{module}/bn/mean"] = batch_norm + suffixes.bn_mean
            names[f"batch_stats/{module}/bn/var"] = batch_norm + suffixes.bn_var
        elif has_classifier:
            names[f"params/{module}/kernel"] = layer + suffixes.kernel
            names[f"params/{module}/bias"] = layer + suffixes.bias
    return names


def translate(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    to_our_layout: Callable[[str, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Renames the tensors of a format to the paths of this package and converts their layouts.

    `names` is what `tensor_names` returns. `to_our_layout` takes a path and the format's array.
    Tensors that are not in `names` keep their name and layout.
    """
    paths = {name: path for path, name in names.items()}
    return {
        paths.get(name, name): to_our_layout(paths[name], array) if name in paths else array
        for name, array in tensors.items()
    }
