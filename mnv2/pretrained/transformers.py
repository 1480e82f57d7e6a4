"""The networks MobileNetV1 and MobileNetV2 of Hugging Face's transformers.

They are ports of slim's networks, with its padding, its epsilon and its 1001 classes. The files
`config.json` and `preprocessor_config.json` next to the weights say where a model differs.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv2.preprocess.host import named_view
from mnv2.pretrained import hub_config
from mnv2.pretrained.infer import Usage
from mnv2.pretrained.names import LayerNames
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.pretrained.slim import FIELDS
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

TRUNK = r"(conv_stem|layer|conv_1x1)\."
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
BORDER = 32  # the shorter side is this much longer than the crop: 256 for 224

# Choices of the config with which this package has no such network.
REQUIRED = {
    "hidden_act": "relu6", "output_stride": 32, "first_layer_is_expansion": True,
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
}  # fmt: skip


def v1_names(module: str) -> tuple[str, str]:
    """Returns the names of a module's convolution (or dense layer) and batch norm."""
    if module == "stem":
        return _convolution("conv_stem")
    block, part = module.removeprefix("block_").split("/")
    return _convolution(f"layer.{2 * int(block) + (part == 'pointwise')}")


def v2_names(module: str) -> tuple[str, str]:
    """Returns the names of a module's convolution (or dense layer) and batch norm."""
    outside_blocks = {"stem": "conv_stem.first_conv", "last_conv": "conv_1x1"}
    if module in outside_blocks:
        return _convolution(outside_blocks[module])
    block, part = module.removeprefix("block_").split("/")
    parts = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}
    parent = "conv_stem" if block == "0" else f"layer.{int(block) - 1}"
    return _convolution(f"{parent}.{parts[part]}")


LAYER_NAMES: dict[str, LayerNames] = {"mobilenet_v1": v1_names, "mobilenet_v2": v2_names}


def settings(path: Path, network: str) -> tuple[dict[str, Any], Usage]:
    """Returns the fields of the network, and how it is used, from the files next to the weights.

    What they do not say is as in the models that Google published. Raises UserError if they
    describe another network or another kind of preprocessing.
    """
    config_file = path.with_name("config.json")
    config = hub_config.read(config_file)
    if config.get("model_type", network) != network:
        note(f"{config_file} is ignored: it describes {str(config['model_type'])[:40]}")
        config = {}
    elif not config:
        note(f"{path} has no config.json next to it: assumed the padding and epsilon of slim")
    _check_required(config, config_file)
    symmetric = hub_config.take(config, "tf_padding", _is_bool, True, config_file) is False
    fields = {
        **FIELDS[network],
        "padding": "symmetric" if symmetric else "same",
        "bn_epsilon": hub_config.take(
            config, "layer_norm_eps", hub_config.is_fraction, 1e-3, config_file
        ),
    }
    if network == "mobilenet_v2":
        fields["expansion"] = hub_config.take(config, "expand_ratio", _is_positive, 6, config_file)
    side = hub_config.take(config, "image_size", hub_config.is_side, 224, config_file)
    preprocess, size = _preprocessing(path.with_name("preprocessor_config.json"), side)
    output = "softmax"
    if config.get("problem_type") == "multi_label_classification":
        output = "sigmoid"
    return fields, Usage(preprocess, size, _class_names(config), output)


def _preprocessing(file: Path, side: int) -> tuple[Preprocessing, tuple[int, int]]:
    """Returns the preprocessing and the size of the images; `side` is the network's own."""
    config = hub_config.read(file)
    _check_required(config, file)
    told = config.get("image_mean") is not None and config.get("image_std") is not None
    if not told:
        note(f"{file} does not tell how to prepare pictures: as for the models of Google")

    def take(name: str, is_valid: Any, default: Any) -> Any:
        return hub_config.take(config, name, is_valid, default, file)

    crop = _side(take("crop_size", _side, side))
    size = take("size", lambda value: _side(value, square=False) >= crop, crop + BORDER)
    shorter = _side(size, square=False)
    fraction = crop / shorter
    while int(crop / fraction) < shorter:  # how `Preprocessing` computes the shorter side
        fraction = math.nextafter(fraction, 0)
    method = RESAMPLING[take("resample", lambda value: value in (2, 3), 2)]
    mean = tuple(take("image_mean", hub_config.is_color, [0.5]))
    std = tuple(take("image_std", hub_config.is_scale, [0.5]))
    view = named_view(method, fraction)
    return Preprocessing(view, mean, std, assumed=not told), (crop, crop)


def _side(value: Any, square: bool = True) -> int:
    """Returns the side that `value` describes, in pixels; 0 if it describes none.

    It is a number or an object: with height and width if it is `square`, or with shortest_edge.
    """
    if isinstance(value, dict):
        height = value.get("height")
        is_square = square and height is not None and height == value.get("width")
        value = height if is_square else value.get("shortest_edge")
    return value if hub_config.is_side(value) else 0


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Returns the labels of a config; None if they are LABEL_0, LABEL_1, ... or incomplete."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or not labels:
        return None
    names = [labels.get(str(i)) for i in range(len(labels))]
    if not hub_config.is_list_of_strings(names):
        return None
    generic = all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
    return None if generic else tuple(map(str, names))


def _check_required(config: Mapping[str, Any], file: Path) -> None:
    for name, value in REQUIRED.items():
        if config.get(name) not in (None, value):
            raise UserError(f"{file} has {name} = {config[name]!r}, but only {value!r} can be read")
    scale = config.get("rescale_factor")
    if scale is not None and not (
        hub_config.is_number(scale) and math.isclose(scale, 1 / 255, rel_tol=1e-4)
    ):
        raise UserError(f"{file} has rescale_factor = {scale!r}, but only 1/255 can be read")


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return hub_config.is_number(value) and value > 0


def _convolution(layer: str) -> tuple[str, str]:
    return f"{layer}.convolution", f"{layer}.normalization"
