"""The names that torchvision, timm, d-li14 and tonylins give to the layers of both networks."""

import itertools
import re
from collections.abc import Iterable, Sequence

from mnv2.pretrained.names import LayerNames

# timm's names of the layers outside of the blocks.
TIMM_OUTSIDE_BLOCKS = {
    "stem": ("conv_stem", "bn1"),
    "last_conv": ("conv_head", "bn2"),
    "classifier": ("classifier", ""),
}


def torchvision_names(module: str) -> tuple[str, str]:
    """Returns torchvision's names of a module's convolution (or dense layer) and batch norm."""
    outside_blocks = {
        "stem": ("features.0.0", "features.0.1"),
        "last_conv": ("features.18.0", "features.18.1"),
        "classifier": ("classifier.1", ""),
    }
    if module in outside_blocks:
        return outside_blocks[module]
    block, part, index = _parse_module(module)
    prefix = f"features.{block + 1}.conv.{index}"
    if part == "project":
        return prefix, f"features.{block + 1}.conv.{index + 1}"
    return f"{prefix}.0", f"{prefix}.1"


def flat_names(last: str) -> LayerNames:
    """Names if each block is one sequence: convolution, batch norm, activation, convolution, ...

    `last` is the name of the last convolution.
    """

    def layer_names(module: str) -> tuple[str, str]:
        if module == "classifier":
            return "classifier", ""
        if module in ("stem", "last_conv"):
            prefix = "features.0" if module == "stem" else last
            return f"{prefix}.0", f"{prefix}.1"
        block, _, index = _parse_module(module)
        prefix = f"features.{block + 1}.conv"
        return f"{prefix}.{3 * index}", f"{prefix}.{3 * index + 1}"

    return layer_names


def timm_v2_names(repeats: Sequence[int]) -> LayerNames:
    def layer_names(module: str) -> tuple[str, str]:
        if module in TIMM_OUTSIDE_BLOCKS:
            return TIMM_OUTSIDE_BLOCKS[module]
        block, part, index = _parse_module(module)
        names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        convolution = "conv_pw" if module == "block_0/project" else names[part]
        prefix = _timm_block(block, repeats)
        return f"{prefix}.{convolution}", f"{prefix}.bn{index + 1}"

    return layer_names


def timm_v1_names(repeats: Sequence[int]) -> LayerNames:
    def layer_names(module: str) -> tuple[str, str]:
        if module in TIMM_OUTSIDE_BLOCKS:
            return TIMM_OUTSIDE_BLOCKS[module]
        block, part, _ = _parse_module(module)
        prefix = _timm_block(block, repeats)
        convolution, batch_norm = {
            "depthwise": ("conv_dw", "bn1"),
            "pointwise": ("conv_pw", "bn2"),
        }[part]
        return f"{prefix}.{convolution}", f"{prefix}.{batch_norm}"

    return layer_names


def _timm_block(block: int, repeats: Sequence[int]) -> str:
    """Returns timm's name of a block, which counts the blocks within each stage.

    For example, block 7 is blocks.3.1 if the stages have 1, 2, 3, 4, ... blocks.
    """
    starts = [0, *itertools.accumulate(repeats)]
    stage = max(i for i, start in enumerate(starts) if start <= block)
    return f"blocks.{stage}.{block - starts[stage]}"


def timm_stages(names: Iterable[str]) -> list[int]:
    """Returns the number of blocks in each stage, from the names of tensors."""
    num_blocks: dict[int, int] = {}
    for name in names:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.", name):
            stage, index = int(match[1]), int(match[2])
            num_blocks[stage] = max(num_blocks.get(stage, 0), index + 1)
    return [num_blocks[stage] for stage in sorted(num_blocks)]


def _parse_module(module: str) -> tuple[int, str, int]:
    """Splits block_3/depthwise into 3, depthwise, and 1, the index of the part in its block."""
    block, part = module.removeprefix("block_").split("/")
    parts = ("depthwise", "project") if block == "0" else ("expand", "depthwise", "project")
    return int(block), part, parts.index(part) if part in parts else 1
