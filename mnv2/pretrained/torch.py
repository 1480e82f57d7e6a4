"""Reads and writes MobileNet and MobileNetV2 with the names of torchvision, timm and others.

torchvision, timm, transformers, d-li14 and tonylins each give other names to the same tensors. All
of them use PyTorch's layout, O I H W. Their classifier may have been replaced by a layer of any
name.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from safetensors.numpy import save

from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.preprocess.host import named_view
from mnv2.pretrained import hub_config, state_dicts, transformers
from mnv2.pretrained.infer import FileContents, Usage
from mnv2.pretrained.names import (
    NUM_BLOCKS,
    LayerNames,
    VariableSuffixes,
    tensor_names,
    translate,
)
from mnv2.pretrained.preprocessing import Preprocessing, size_in_name
from mnv2.pretrained.torch_names import (
    flat_names,
    timm_stages,
    timm_v1_names,
    timm_v2_names,
    torchvision_names,
)
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note

# PyTorch's batch norm has epsilon 1e-5 and momentum 0.1, which this package writes as 1 - 0.1.
FIELDS = {"padding": "symmetric", "bn_epsilon": 1e-5, "bn_momentum": 0.9}

VARIABLE_SUFFIXES = VariableSuffixes(
    ".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var"
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TORCHVISION = Preprocessing(named_view("bilinear", 224 / 256), IMAGENET_MEAN, IMAGENET_STD)
TORCHVISION_2 = Preprocessing(named_view("bilinear", 224 / 232), IMAGENET_MEAN, IMAGENET_STD)
TIMM_V2 = Preprocessing(named_view("bicubic", 0.875), IMAGENET_MEAN, IMAGENET_STD)
TIMM_V1 = Preprocessing(named_view("bicubic", 0.875), (0.5,), (0.5,))

# torchvision published weights twice; only the hash in the name of the file tells them apart.
TORCHVISION_HASHES = {
    "b0353104": ("IMAGENET1K_V1", TORCHVISION),
    "7ebf99e0": ("IMAGENET1K_V2", TORCHVISION_2),
}
SMALLEST = 32  # a smaller size in the name of a file means something else
CLASSIFIERS = re.compile("classifier|fc|head|linear|logits|predictions")


class _Layout(NamedTuple):
    """How a file names the tensors of its network, and how the network is built and used.

    names  the names of the layers, without the prefix of the file
    trunk  matches what follows the prefix in the name of any layer before the classifier
    """

    network: str
    num_blocks: int
    names: LayerNames
    trunk: str
    fields: Mapping[str, Any]
    usage: Usage


def read(path: Path, need_head: bool = True) -> FileContents:
    """Reads a file. Raises UserError if it is damaged or holds another network.

    Unless `need_head`, a head that is not one linear layer is left out, after a note.
    """
    weights = state_dicts.load(path)
    layout = _layout(path, weights)
    arrays = dict(weights.arrays)
    trunk = set(_tensor_names(layout, weights, None).values())
    in_trunk = re.compile(re.escape(weights.prefix) + layout.trunk)
    head = [name for name in arrays if name not in trunk and not in_trunk.match(name)]
    classifier = _find_classifier(path, arrays, head, need_head)
    if not need_head and set(head) - {f"{classifier}.weight", f"{classifier}.bias"}:
        note(f"{path}: left out its head, {first_few(head)}")
        arrays = {name: array for name, array in arrays.items() if name not in head}
        classifier = None
    if classifier is not None and f"{classifier}.bias" not in arrays:
        size = len(arrays[f"{classifier}.weight"])
        arrays[f"{classifier}.bias"] = np.zeros(size, np.float32)
    names = _tensor_names(layout, weights, classifier)
    return FileContents(
        layout.network,
        translate(arrays, names, _to_hwio),
        names,
        layout.fields,
        **layout.usage._asdict(),
    )


def write(path: Path, arrays: Mapping[str, ArrayLike], suffix: str) -> None:
    """Writes the arrays of a MobileNetV2 by path as torchvision's state dict.

    The suffix of the file is .safetensors, .pth or .pt; the last two need PyTorch.
    """
    names = tensor_names("mobilenet_v2", sum(REPEATS), torchvision_names, VARIABLE_SUFFIXES)
    state = {
        names[name]: np.ascontiguousarray(_to_oihw(np.asarray(array)))
        for name, array in arrays.items()
    }
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    if suffix == ".safetensors":
        path.write_bytes(save(state))  # not by save_file, whose files only their owner can read
        return
    try:
        import torch
    except ImportError:
        raise UserError(
            f"writing {suffix} files needs PyTorch: pip install torch, or use .safetensors"
        ) from None
    with path.open("wb") as file:  # by a path, torch.save would write its name into the file
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, file)


def _layout(path: Path, weights: state_dicts.Weights) -> _Layout:
    if weights.scheme.startswith("transformers"):
        network = f"mobilenet_{weights.scheme.removeprefix('transformers ')}"
        fields, usage = transformers.settings(path, network)
        layer_names = transformers.LAYER_NAMES[network]
        trunk = transformers.TRUNK
        return _Layout(network, NUM_BLOCKS[network], layer_names, trunk, fields, usage)
    if weights.scheme == "timm":
        return _timm_layout(path, weights)
    layer_names = torchvision_names
    if weights.scheme == "flat":
        # d-li14 keeps the last convolution outside of `features`.
        outside = _with_prefix(weights, "conv.0.weight") in weights.arrays
        layer_names = flat_names("conv" if outside else "features.18")
    trunk, usage = r"(\d|1[0-8])\.", _torchvision_usage(path)
    return _Layout("mobilenet_v2", sum(REPEATS), layer_names, trunk, FIELDS, usage)


def _timm_layout(path: Path, weights: state_dicts.Weights) -> _Layout:
    names = [name.removeprefix(weights.prefix) for name in weights.arrays]
    repeats, trunk = timm_stages(names), r"(conv_stem|bn1|blocks|conv_head|bn2)\."
    if not any("conv_pwl" in name for name in names):
        layer_names, usage = timm_v1_names(repeats), _timm_usage(path, TIMM_V1)
        return _Layout("mobilenet_v1", sum(repeats), layer_names, trunk, FIELDS, usage)
    if len(repeats) != len(REPEATS):
        raise UserError(f"{path} has {len(repeats)} stages but MobileNetV2 has {len(REPEATS)}")
    fields = {**FIELDS, "repeats": tuple(repeats)}
    layer_names, usage = timm_v2_names(repeats), _timm_usage(path, TIMM_V2)
    return _Layout("mobilenet_v2", sum(repeats), layer_names, trunk, fields, usage)


def _tensor_names(
    layout: _Layout, weights: state_dicts.Weights, classifier: str | None
) -> dict[str, str]:
    """Maps the paths of this package to the names in the file, with its prefix."""

    def layer_names(module: str) -> tuple[str, str]:
        if module == "classifier":
            return str(classifier), ""
        layer, batch_norm = layout.names(module)
        return _with_prefix(weights, layer), _with_prefix(weights, batch_norm)

    return tensor_names(
        layout.network, layout.num_blocks, layer_names, VARIABLE_SUFFIXES, classifier is not None
    )


def _with_prefix(weights: state_dicts.Weights, name: str) -> str:
    """Returns the name in the file. A prefix of torchvision's names includes `features.`."""
    if weights.scheme in ("torchvision", "flat") and not name.startswith("features."):
        return weights.prefix.removesuffix("features.") + name
    return weights.prefix + name.removeprefix("features.")


def _find_classifier(
    path: Path, arrays: Mapping[str, np.ndarray], head: Sequence[str], need_head: bool
) -> str | None:
    """Finds the only linear layer in the head of a network, whatever its name is.

    Returns None if there is none. If there are several, a state dict does not hold what is between
    them: raises UserError, or returns None unless `need_head`.
    """
    layers = [
        name.removesuffix(".weight")
        for name in head
        if name.endswith(".weight") and arrays[name].ndim == 2
    ]
    if len(layers) > 1 and need_head:
        raise UserError(
            f"{path} has the linear layers {', '.join(layers[:6])}, and a state dict does not say "
            "what is between them, such as ReLU: give a file with one, or use load_backbone"
        )
    if len(layers) != 1:
        return None
    if not CLASSIFIERS.search(layers[0]) and not re.fullmatch(r"(.*\.)?\d+", layers[0]):
        note(f"{path}: took {layers[0]}, its only linear layer, as the classifier")
    return layers[0]


def _torchvision_usage(path: Path) -> Usage:
    """Says how torchvision, d-li14 and tonylins prepare pictures, which is not in the file."""
    name, preprocess = TORCHVISION_HASHES["b0353104"]
    why = ""
    for digits, published in TORCHVISION_HASHES.items():
        if digits in path.name:
            (name, preprocess), why = published, ", from its name"
    side = _side_in_name(path)
    note(
        f"{path} does not tell how to prepare pictures: as for torchvision's {name}{why} "
        f"({preprocess.view}, to {side} x {side})"
    )
    return Usage(dataclasses.replace(preprocess, assumed=True), (side, side))


def _timm_usage(path: Path, default: Preprocessing) -> Usage:
    """Reads the config.json that timm puts next to weights on the hub, if there is one."""
    file = path.with_name("config.json")
    config = hub_config.read(file)
    inner = config.get("pretrained_cfg")
    if isinstance(inner, dict):
        config |= {name: value for name, value in inner.items() if value is not None}

    def take(name: str, is_valid: Callable[[Any], bool], fallback: Any) -> Any:
        return hub_config.take(config, name, is_valid, fallback, file)

    told = config.get("mean") is not None and config.get("std") is not None
    if not told:
        note(f"{path} does not tell how to prepare pictures: as timm does by default")
    method = take("interpolation", lambda value: value in ("bilinear", "bicubic"), "bicubic")
    preprocess = Preprocessing(
        named_view(method, take("crop_pct", hub_config.is_fraction, default.crop)),
        tuple(take("mean", hub_config.is_color, default.mean)),
        tuple(take("std", hub_config.is_scale, default.std)),
        assumed=not told,
    )
    take("crop_mode", lambda value: value == "center", "center")
    size = config.get("input_size")
    side = 224 if size is not None else _side_in_name(path)
    _, height, width = take("input_size", _is_input_size, (3, side, side))
    labels = take("label_names", hub_config.is_list_of_strings, None)
    return Usage(preprocess, (height, width), labels and tuple(labels))


def _is_input_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(hub_config.is_side, value))


def _side_in_name(path: Path) -> int:
    """Returns the pixels of a side from a name such as mobilenetv2_128x128-fd66a69d.pth, or 224."""
    match = re.search(r"(?<!\d)(\d{2,4})x\1(?!\d)", path.name)
    if match is not None and int(match[1]) >= SMALLEST:
        note(f"{path}: pictures have {match[0]} pixels, from its name")
        return int(match[1])
    named = size_in_name(path.name)
    return named[0] if named else 224


def _to_hwio(path: str, array: np.ndarray) -> np.ndarray:
    """Transposes kernels: O I H W to H W I O, and O I of a dense layer to I O."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_oihw(array: np.ndarray) -> np.ndarray:
    """Transposes kernels: H W I O to O I H W, and I O of a dense layer to O I."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
