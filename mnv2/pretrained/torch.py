"""Reads and writes MobileNet and MobileNetV2 with the names of torchvision, timm and others.

torchvision, timm, d-li14 and tonylins each give other names to the same tensors. All of them use
PyTorch's layout, O I H W.
"""

import itertools
import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from safetensors.numpy import load_file, save_file

from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.pretrained.infer import FileContents
from mnv2.pretrained.names import LayerNames, VariableSuffixes, tensor_names, translate
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# PyTorch's batch norm has epsilon 1e-5 and momentum 0.1, which this package writes as 1 - 0.1.
FIELDS = {"padding": "symmetric", "bn_epsilon": 1e-5, "bn_momentum": 0.9}

VARIABLE_SUFFIXES = VariableSuffixes(
    ".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var"
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = Preprocessing("bilinear", 224 / 256, IMAGENET_MEAN, IMAGENET_STD)
# For torchvision's IMAGENET1K_V2 weights, which are recognised by the hash in their file name.
TORCHVISION_2 = Preprocessing("bilinear", 224 / 232, IMAGENET_MEAN, IMAGENET_STD)
TIMM_V2 = Preprocessing("bicubic", 0.875, IMAGENET_MEAN, IMAGENET_STD)
TIMM_V1 = Preprocessing("bicubic", 0.875, (0.5,), (0.5,))

# timm's names of the layers outside of the blocks.
TIMM_OUTSIDE_BLOCKS = {
    "stem": ("conv_stem", "bn1"),
    "last_conv": ("conv_head", "bn2"),
    "classifier": ("classifier", ""),
}


def read(path: Path) -> FileContents:
    """Reads a file. Raises UserError if it is damaged or holds another network."""
    state = {
        name.removeprefix("module."): array
        for name, array in _load(path).items()
        if not name.endswith("num_batches_tracked")
    }
    network, fields, preprocess = "mobilenet_v2", dict(FIELDS), TORCHVISION
    repeats: Sequence[int] = REPEATS
    if "features.1.conv.0.0.weight" in state:
        layer_names: LayerNames = torchvision_names
        if "7ebf99e0" in path.name:
            preprocess = TORCHVISION_2
    elif "features.1.conv.0.weight" in state:
        # d-li14 keeps the last convolution outside of `features`.
        last = "conv" if "conv.0.weight" in state else "features.18"
        classifier = "classifier" if "classifier.weight" in state else "classifier.1"
        layer_names = _flat_names(last, classifier)
    elif "conv_stem.weight" in state and "blocks.0.0.conv_dw.weight" in state:
        repeats = _timm_stages(state)
        layer_names, preprocess = _timm_v2_names(repeats), TIMM_V2
        fields["repeats"] = tuple(repeats)
        if not any("conv_pwl" in name for name in state):
            network, layer_names = "mobilenet_v1", _timm_v1_names(repeats)
            preprocess = TIMM_V1
            del fields["repeats"]
        elif len(repeats) != len(REPEATS):
            raise UserError(f"{path} has {len(repeats)} stages but MobileNetV2 has {len(REPEATS)}")
        preprocess = _timm_preprocessing(path, preprocess)
    else:
        raise UserError(
            f"{path} holds no MobileNet or MobileNetV2 of torchvision, timm, d-li14 or tonylins"
        )
    has_classifier = any(name.startswith("classifier") for name in state)
    names = tensor_names(network, sum(repeats), layer_names, VARIABLE_SUFFIXES, has_classifier)
    return FileContents(network, translate(state, names, _to_hwio), names, fields, preprocess)


def write(path: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Writes the arrays of a MobileNetV2 by path as torchvision's state dict.

    The suffix of `path` is .safetensors, .pth or .pt; the last two need PyTorch.
    """
    names = tensor_names("mobilenet_v2", sum(REPEATS), torchvision_names, VARIABLE_SUFFIXES)
    state = {
        names[name]: np.ascontiguousarray(_to_oihw(np.asarray(array)))
        for name, array in arrays.items()
    }
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch = _import_torch(f"writing {path}")
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, path)


def _load(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # a damaged file raises several types
            raise UserError(f"cannot read {path}: {error}") from error
    torch = _import_torch(f"reading {path}")
    try:
        # PyTorch rejects a pickle that does anything other than hold tensors.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and is not read: save the model's state_dict()"
        ) from error
    except Exception as error:  # a damaged file makes torch raise any of many types
        raise UserError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {k: v.float().numpy() for k, v in state.items() if isinstance(v, torch.Tensor)}


def _import_torch(doing: str) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(f"{doing} needs PyTorch: pip install torch, or use .safetensors") from None
    return torch


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


def _flat_names(last: str, classifier: str) -> LayerNames:
    """Names if each block is one sequence: convolution, batch norm, activation, convolution, ...

    `last` and `classifier` are the names of the last convolution and of the classifier.
    """

    def layer_names(module: str) -> tuple[str, str]:
        if module == "classifier":
            return classifier, ""
        if module in ("stem", "last_conv"):
            prefix = "features.0" if module == "stem" else last
            return f"{prefix}.0", f"{prefix}.1"
        block, _, index = _parse_module(module)
        prefix = f"features.{block + 1}.conv"
        return f"{prefix}.{3 * index}", f"{prefix}.{3 * index + 1}"

    return layer_names


def _timm_v2_names(repeats: Sequence[int]) -> LayerNames:
    def layer_names(module: str) -> tuple[str, str]:
        if module in TIMM_OUTSIDE_BLOCKS:
            return TIMM_OUTSIDE_BLOCKS[module]
        block, part, index = _parse_module(module)
        names = {"expand": "conv_pw", "depthwise": "conv_dw", "project": "conv_pwl"}
        convolution = "conv_pw" if module == "block_0/project" else names[part]
        prefix = _timm_block(block, repeats)
        return f"{prefix}.{convolution}", f"{prefix}.bn{index + 1}"

    return layer_names


def _timm_v1_names(repeats: Sequence[int]) -> LayerNames:
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


def _timm_stages(state: Mapping[str, np.ndarray]) -> list[int]:
    """Returns the number of blocks in each stage."""
    num_blocks: dict[int, int] = {}
    for name in state:
        if match := re.match(r"blocks\.(\d+)\.(\d+)\.", name):
            stage, index = int(match[1]), int(match[2])
            num_blocks[stage] = max(num_blocks.get(stage, 0), index + 1)
    return [num_blocks[stage] for stage in sorted(num_blocks)]


def _timm_preprocessing(path: Path, default: Preprocessing) -> Preprocessing:
    """Reads the preprocessing from the config.json that timm puts next to weights on the hub.

    Returns `default` if there is no such file, or if it does not contain the preprocessing.
    """
    try:
        config = json.loads(path.with_name("config.json").read_text())["pretrained_cfg"]
        return Preprocessing(
            config["interpolation"],
            config["crop_pct"],
            tuple(config["mean"]),
            tuple(config["std"]),
        )
    except (OSError, KeyError, ValueError):
        return default


def _parse_module(module: str) -> tuple[int, str, int]:
    """Splits block_3/depthwise into 3, depthwise, and 1, the index of the part in its block."""
    block, part = module.removeprefix("block_").split("/")
    parts = ("depthwise", "project") if block == "0" else ("expand", "depthwise", "project")
    return int(block), part, parts.index(part) if part in parts else 1


def _to_hwio(path: str, array: np.ndarray) -> np.ndarray:
    """Transposes kernels: O I H W to H W I O, and O I of a dense layer to I O."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_oihw(array: np.ndarray) -> np.ndarray:
    """Transposes kernels: H W I O to O I H W, and I O of a dense layer to O I."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
