"""MobileNet and MobileNetV2 under the names of torchvision, timm, d-li14 and tonylins.

Each of these names the same tensors in another way; all lie in PyTorch's layouts, O I H W.
"""

import itertools
import json
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from safetensors.numpy import load_file, save_file

from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.pretrained.network import Tensors, Variables, table, translate
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# PyTorch's batch norm: epsilon 1e-5 and momentum 0.1, which here counts the other way round.
FIELDS = {"padding": "symmetric", "bn_epsilon": 1e-5, "bn_momentum": 0.9}

VARIABLES = Variables(".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var")

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = Preprocessing("bilinear", 224 / 256, IMAGENET_MEAN, IMAGENET_STD)
# torchvision's second weights, known by the hash in their file's name.
TORCHVISION_2 = Preprocessing("bilinear", 224 / 232, IMAGENET_MEAN, IMAGENET_STD)
TIMM_V2 = Preprocessing("bicubic", 0.875, IMAGENET_MEAN, IMAGENET_STD)
TIMM_V1 = Preprocessing("bicubic", 0.875, (0.5,), (0.5,))

Layers = Callable[[str], tuple[str, str]]


def read(path: Path) -> Tensors:
    """Reads a file's tensors. Raises UserError if it is damaged or holds another network."""
    state = {
        name.removeprefix("module."): array
        for name, array in _load(path).items()
        if not name.endswith("num_batches_tracked")
    }
    network, fields, preprocess = "mobilenet_v2", dict(FIELDS), TORCHVISION
    repeats: Sequence[int] = REPEATS
    if "features.1.conv.0.0.weight" in state:
        layers: Layers = torchvision
        if "7ebf99e0" in path.name:
            preprocess = TORCHVISION_2
    elif "features.1.conv.0.weight" in state:
        separate = "conv.0.weight" in state  # d-li14's last convolution
        last = "conv" if separate else "features.18"
        classifier = "classifier" if "classifier.weight" in state else "classifier.1"
        layers = _flat(last, classifier)
    elif "conv_stem.weight" in state and "blocks.0.0.conv_dw.weight" in state:
        repeats = _timm_stages(state)
        layers, preprocess = _timm_v2(repeats), TIMM_V2
        fields["repeats"] = tuple(repeats)
        if not any("conv_pwl" in name for name in state):
            network, layers, preprocess = "mobilenet_v1", _timm_v1(repeats), TIMM_V1
            del fields["repeats"]
        elif len(repeats) != len(REPEATS):
            raise UserError(f"{path} has {len(repeats)} stages, MobileNetV2 has {len(REPEATS)}")
        preprocess = _timm_config(path, preprocess)
    else:
        raise UserError(
            f"{path} holds no MobileNet or MobileNetV2 of torchvision, timm, d-li14 or tonylins"
        )
    top = any(name.startswith("classifier") for name in state)
    names = table(network, sum(repeats), layers, VARIABLES, top)
    return Tensors(network, translate(state, names, _layout), names, fields, preprocess)


def write(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes a MobileNetV2's arrays as torchvision's state dict: .safetensors, .pth or .pt."""
    names = table("mobilenet_v2", sum(REPEATS), torchvision, VARIABLES)
    state = {
        names[name]: np.ascontiguousarray(_layout_back(np.asarray(array)))
        for name, array in arrays.items()
    }
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch = _torch(f"writing {path}")
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)


def _load(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # its own exception type is not public
            raise UserError(f"cannot read {path}: {error}") from error
    torch = _torch(f"reading {path}")
    try:
        # Only tensors: anything else that a pickle can do is refused.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, which is not read: save the model's state_dict()"
        ) from error
    except Exception as error:  # torch raises whatever the damage leads to
        raise UserError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {k: v.float().numpy() for k, v in state.items() if isinstance(v, torch.Tensor)}


def _torch(doing: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{doing} needs PyTorch: pip install torch, or use .safetensors") from None
    return torch


def torchvision(module: str) -> tuple[str, str]:
    """torchvision's names of a module's convolution and batch norm."""
    ends = {
        "stem": ("features.0.0", "features.0.1"),
        "last_conv": ("features.18.0", "features.18.1"),
    }
    if module in ends:
        return ends[module]
    if module == "classifier":
        return "classifier.1", ""
    block, part, index = _parse(module)
    prefix = f"features.{block + 1}.conv.{index}"
    if part == "project":
        return prefix, f"features.{block + 1}.conv.{index + 1}"
    return f"{prefix}.0", f"{prefix}.1"


def _flat(last: str, classifier: str) -> Layers:
    """A block is one sequence: convolution, batch norm, activation, convolution, ..."""

    def layers(module: str) -> tuple[str, str]:
        if module == "classifier":
            return classifier, ""
        if module in ("stem", "last_conv"):
            prefix = "features.0" if module == "stem" else last
            return f"{prefix}.0", f"{prefix}.1"
        block, _, index = _parse(module)
        prefix = f"features.{block + 1}.conv"
        return f"{prefix}.{3 * index}", f"{prefix}.{3 * index + 1}"

    return layers


def _timm_v2(repeats: Sequence[int]) -> Layers:
    def layers(module: str) -> tuple[str, str]:
        if module in TIMM_ENDS:
            return TIMM_ENDS[module]
        block, part, index = _parse(module)
        names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        convolution = "conv_pw" if module == "block_0/project" else names[part]
        prefix = _timm_block(block, repeats)
        return f"{prefix}.{convolution}", f"{prefix}.bn{index + 1}"

    return layers


def _timm_v1(repeats: Sequence[int]) -> Layers:
    def layers(module: str) -> tuple[str, str]:
        if module in TIMM_ENDS:
            return TIMM_ENDS[module]
        block, part, _ = _parse(module)
        prefix = _timm_block(block, repeats)
        names = {"depthwise": ("conv_dw", "bn1"), "pointwise": ("conv_pw", "bn2")}[part]
        return f"{prefix}.{names[0]}", f"{prefix}.{names[1]}"

    return layers


TIMM_ENDS = {
    "stem": ("conv_stem", "bn1"),
    "last_conv": ("conv_head", "bn2"),
    "classifier": ("classifier", ""),
}


def _timm_block(block: int, repeats: Sequence[int]) -> str:
    """timm counts blocks within stages: block 7 is blocks.3.1 where there are 1, 2, 3, 4, ..."""
    starts = [0, *itertools.accumulate(repeats)]
    stage = max(i for i, start in enumerate(starts) if start <= block)
    return f"blocks.{stage}.{block - starts[stage]}"


def _timm_stages(state: Mapping[str, np.ndarray]) -> list[int]:
    """Numbers of blocks in each stage."""
    found: dict[int, int] = {}
    for name in state:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.", name):
            stage, index = int(match[1]), int(match[2])
            found[stage] = max(found.get(stage, 0), index + 1)
    return [found[stage] for stage in sorted(found)]


def _timm_config(path: Path, default: Preprocessing) -> Preprocessing:
    """What the config.json beside weights from timm's hub says of the evaluation."""
    config = path.with_name("config.json")
    try:
        given = json.loads(config.read_text())["pretrained_cfg"]
        return Preprocessing(
            given["interpolation"], given["crop_pct"], tuple(given["mean"]), tuple(given["std"])
        )
    except (OSError, KeyError, ValueError):
        return default


def _parse(module: str) -> tuple[int, str, int]:
    """block_3/depthwise -> 3, depthwise, and which part of its block that is: 1."""
    block, part = module.removeprefix("block_").split("/")
    parts = ("depthwise", "project") if block == "0" else ("expand", "depthwise", "project")
    return int(block), part, parts.index(part) if part in parts else 1


def _layout(name: str, array: np.ndarray) -> np.ndarray:
    """O I H W to H W I O; a dense layer's O I to I O."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _layout_back(array: np.ndarray) -> np.ndarray:
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
