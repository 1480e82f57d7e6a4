"""The names of tensors: `params/block_3/expand/kernel` here, and those that other formats use.

A format is described by templates of the names of its layers, and by one suffix per variable.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS

# The number of blocks in each stage.
STAGES = {"mobilenet_v1": (len(V1_CHANNELS),), "mobilenet_v2": REPEATS}
NUM_BLOCKS = {network: sum(stages) for network, stages in STAGES.items()}

# Maps a module, a block, a part or `block` to the names of its convolution (or dense layer) and its
# batch norm, with a space between them; or to one name for both. The fields of `_modules`, and
# `part`, stand in braces.
Templates = Mapping[str, str]
# What follows the name of a layer to name its kernel, its bias, and batch norm's scale, bias, mean
# and variance.
Suffixes = tuple[str, str, str, str, str, str]


def tensor_names(
    network: str, templates: Templates, suffixes: Suffixes, stages: Sequence[int] | None = None
) -> dict[str, str]:
    """Maps the path of every tensor in this package to the name of that tensor in a format.

    They are in the order of the network. `stages` has the number of blocks in each stage, by
    default that of the paper. Without a template `classifier` there is none.
    """
    names: dict[str, str] = {}
    kernel, bias, bn_scale, bn_bias, bn_mean, bn_var = suffixes
    for module, fields in _modules(network, STAGES[network] if stages is None else stages):
        block, _, part = module.partition("/")
        template = next(templates[x] for x in (module, block, part, "block") if x in templates)
        layer, _, batch_norm = template.format(part=part, **fields).partition(" ")
        batch_norm = batch_norm or layer
        names |= {
            f"params/{module}/kernel": layer + kernel,
            f"params/{module}/bn/scale": batch_norm + bn_scale,
            f"params/{module}/bn/bias": batch_norm + bn_bias,
            f"batch_stats/{module}/bn/mean": batch_norm + bn_mean,
            f"batch_stats/{module}/bn/var": batch_norm + bn_var,
        }
    if layer := templates.get("classifier", ""):
        names |= {
            "params/classifier/kernel": layer + kernel,
            "params/classifier/bias": layer + bias,
        }
    return names


def _modules(network: str, stages: Sequence[int]) -> Iterator[tuple[str, dict[str, int]]]:
    """Yields a network's convolutions, in order, with the numbers that formats give to a block."""
    is_v1 = network == "mobilenet_v1"
    yield "stem", {}
    numbered = [(stage, i) for stage, count in enumerate(stages) for i in range(count)]
    for block, (stage, in_stage) in enumerate(numbered):
        fields = {
            "block": block, "previous": block - 1, "next": block + 1, "twice": 2 * block,
            "twice_next": 2 * block + 1, "stage": stage, "in_stage": in_stage,
        }  # fmt: skip
        parts = ("depthwise", "pointwise") if is_v1 else ("expand", "depthwise", "project")
        for part in parts[not is_v1 and block == 0 :]:  # the first block of V2 does not expand
            yield f"block_{block}/{part}", fields
    if not is_v1:
        yield "last_conv", {}


def translate(
    tensors: Mapping[str, np.ndarray],
    names: Mapping[str, str],
    to_our_layout: Callable[[str, np.ndarray], np.ndarray],
) -> dict[str, np.ndarray]:
    """Renames the tensors of a format to the paths of this package and converts their layouts.

    Tensors that are not in `names`, of `tensor_names`, keep their name and layout.
    """
    paths = {name: path for path, name in names.items()}
    return {
        paths.get(name, name): to_our_layout(paths[name], array) if name in paths else array
        for name, array in tensors.items()
    }
