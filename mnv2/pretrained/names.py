"""The names of tensors: the paths of this package, and the names that other formats use.

A path of this package is `params/block_3/expand/kernel`; its module is `block_3/expand`. A format
is described by templates of the names of its layers, and by one suffix per variable.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS

# The number of blocks in each stage.
STAGES = {"mobilenet_v1": (len(V1_CHANNELS),), "mobilenet_v2": REPEATS}
NUM_BLOCKS = {network: sum(stages) for network, stages in STAGES.items()}

# Maps a module, a block, a part or `block` to the names of its convolution (or dense layer) and its
# batch norm, with a space between them; or to one name for both. The fields of `layer_names` stand
# in braces.
Templates = Mapping[str, str]
# What follows the name of a layer to name its kernel, its bias, and batch norm's scale, bias, mean
# and variance.
Suffixes = tuple[str, str, str, str, str, str]


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


def layer_names(templates: Templates, module: str, stages: Sequence[int]) -> tuple[str, str]:
    """Returns a format's names of a module's convolution (or dense layer) and its batch norm."""
    block, _, part = module.partition("/")
    template = next(templates[x] for x in (module, block, part, "block") if x in templates)
    fields: dict[str, int | str] = {}
    if part:
        i = int(block.removeprefix("block_"))
        starts = [0, *itertools.accumulate(stages)]
        stage = max(n for n, start in enumerate(starts) if start <= i)
        fields = {
            "part": part, "block": i, "previous": i - 1, "next": i + 1, "twice": 2 * i,
            "twice_next": 2 * i + 1, "stage": stage, "in_stage": i - starts[stage],
        }  # fmt: skip
    layer, _, batch_norm = template.format(**fields).partition(" ")
    return layer, batch_norm or layer


def tensor_names(
    network: str, templates: Templates, suffixes: Suffixes, stages: Sequence[int] | None = None
) -> dict[str, str]:
    """Maps the path of every tensor in this package to the name of that tensor in a format.

    `stages` has the number of blocks in each stage, by default that of the paper. Without a
    template `classifier` there is none.
    """
    names = {}
    stages = STAGES[network] if stages is None else stages
    kernel, bias, bn_scale, bn_bias, bn_mean, bn_var = suffixes
    for module in module_paths(network, sum(stages)):
        if module == "classifier" and module not in templates:
            continue
        layer, batch_norm = layer_names(templates, module, stages)
        names[f"params/{module}/kernel"] = layer + kernel
        if module == "classifier":
            names[f"params/{module}/bias"] = layer + bias
        else:
            names[f"params/{module}/bn/scale"] = batch_norm + bn_scale
            names[f"params/{module}/bn/bias"] = batch_norm + bn_bias
            names[f"batch_stats/{module}/bn/mean"] = batch_norm + bn_mean
            names[f"batch_stats/{module}/bn/var"] = batch_norm + bn_var
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
