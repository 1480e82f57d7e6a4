"""MobileNetV2 under the names of torchvision, timm, and the flat ones of d-li14 and tonylins.

Each of these names the same tensors in another way; all lie in PyTorch's layouts, O I H W.
"""

import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from safetensors.numpy import load_file

from mnv2.errors import UserError
from mnv2.pretrained.network import Tensors

# PyTorch's batch norm: epsilon 1e-5 and momentum 0.1, which here counts the other way round.
FIELDS = {"padding": "symmetric", "bn_epsilon": 1e-5, "bn_momentum": 0.9}

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# Blocks in each of timm's stages: blocks.3.1 is the network's block 7.
TIMM_V2_STAGES = (1, 2, 3, 4, 3, 3, 1)

BATCH_NORM = {
    "weight": "params/{}/bn/scale",
    "bias": "params/{}/bn/bias",
    "running_mean": "batch_stats/{}/bn/mean",
    "running_var": "batch_stats/{}/bn/var",
}


def preprocess(images: ArrayLike) -> jax.Array:
    """[0, 255] to zero mean and unit deviation over ImageNet's training images."""
    unit = jnp.asarray(images) / 255
    return (unit - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)


def read(path: Path) -> Tensors:
    """Reads a file's tensors. Raises UserError if it is damaged or holds another network."""
    state = _load(path)
    state = {name.removeprefix("module."): array for name, array in state.items()}
    place = _naming(state)
    if place is None:
        raise UserError(f"{path} holds no MobileNetV2 of torchvision, timm, d-li14 or tonylins")
    arrays = {}
    for name, array in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        module, _, variable = name.rpartition(".")
        ours, is_batch_norm = place(module)
        if is_batch_norm:
            arrays[BATCH_NORM[variable].format(ours)] = array
        elif variable == "bias":
            arrays[f"params/{ours}/bias"] = array
        else:
            arrays[f"params/{ours}/kernel"] = _layout(array)
    return Tensors("mobilenet_v2", arrays, FIELDS, preprocess)


def _load(path: Path) -> Mapping[str, np.ndarray]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # its own exception type is not public
            raise UserError(f"cannot read {path}: {error}") from error
    try:
        import torch
    except ImportError:
        raise UserError(
            f"reading {path} needs PyTorch: pip install torch, or convert it to .safetensors"
        ) from None
    try:
        # Only tensors: anything else that a pickle can do is refused.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors, which is not read: save the model's state_dict()"
        ) from error
    except Exception as error:  # torch raises whatever the damage leads to
        raise UserError(f"cannot read {path}: {str(error).strip().splitlines()[0]}") from error
    state = state.get("state_dict", state)
    return {name: tensor.float().numpy() for name, tensor in state.items()}


Place = Callable[[str], tuple[str, bool]]


def _naming(state: Mapping[str, np.ndarray]) -> Place | None:
    """How the file names modules: a function to our name and whether it is a batch norm."""
    if "features.1.conv.0.0.weight" in state:
        return _torchvision
    if "features.1.conv.0.weight" in state:
        return _flat
    if "conv_stem.weight" in state and any("conv_pwl" in name for name in state):
        return _timm
    return None


def _shared(module: str) -> tuple[str, bool] | None:
    match module:
        case "features.0.0" | "features.0.1":
            return "stem", module.endswith("1")
        case "features.18.0" | "features.18.1" | "conv.0" | "conv.1":
            return "last_conv", module.endswith("1")
        case "classifier" | "classifier.1":
            return "classifier", False
    return None


def _torchvision(module: str) -> tuple[str, bool]:
    if shared := _shared(module):
        return shared
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)(?:\.(\d))?", module)
    if not match:
        return module, False
    block, stage = int(match[1]) - 1, int(match[2])
    parts = ("depthwise",) if block == 0 else ("expand", "depthwise")
    if match[3]:  # conv and batch norm of a part with an activation
        part = parts[stage] if stage < len(parts) else f"part_{stage}"
        return f"block_{block}/{part}", match[3] == "1"
    return f"block_{block}/project", stage > len(parts)


def _flat(module: str) -> tuple[str, bool]:
    if shared := _shared(module):
        return shared
    match = re.fullmatch(r"features\.(\d+)\.conv\.(\d+)", module)
    if not match:
        return module, False
    block, index = int(match[1]) - 1, int(match[2])
    # conv, batch norm, activation, conv, batch norm, ... in one sequence.
    parts = ("depthwise", "project") if block == 0 else ("expand", "depthwise", "project")
    part = parts[index // 3] if index // 3 < len(parts) else f"part_{index}"
    return f"block_{block}/{part}", index % 3 == 1


def _timm(module: str) -> tuple[str, bool]:
    match module:
        case "conv_stem" | "bn1":
            return "stem", module == "bn1"
        case "conv_head" | "bn2":
            return "last_conv", module == "bn2"
        case "classifier":
            return "classifier", False
    match = re.fullmatch(r"blocks\.(\d)\.(\d)\.(\w+)", module)
    if not match:
        return module, False
    stage, index, layer = int(match[1]), int(match[2]), match[3]
    block = sum(TIMM_V2_STAGES[:stage]) + index
    # The first stage's blocks have no expansion, so that the names shift by one.
    layers = (
        {"conv_dw": "depthwise", "bn1": "depthwise", "conv_pw": "project", "bn2": "project"}
        if stage == 0
        else {
            **{"conv_pw": "expand", "bn1": "expand", "conv_dw": "depthwise", "bn2": "depthwise"},
            **{"conv_pwl": "project", "bn3": "project"},
        }
    )
    return f"block_{block}/{layers.get(layer, layer)}", layer.startswith("bn")


def _layout(array: np.ndarray) -> np.ndarray:
    """O I H W to H W I O; a dense layer's O I to I O."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
