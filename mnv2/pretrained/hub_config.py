"""What timm and transformers tell in the JSON files next to weights on the Hugging Face hub.

A file that is missing or damaged, or a value that is null, changes nothing; what is not understood
is said in one line.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnv2.preprocess.host import named_view
from mnv2.pretrained.infer import Usage
from mnv2.pretrained.preprocessing import Preprocessing, size_in_name
from mnv2.pretrained.slim import FIELDS
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
BORDER = 32  # the shorter side is this much longer than the crop: 256 for 224

# Choices of the config of transformers with which this package has no such network.
REQUIRED = {
    "hidden_act": "relu6", "output_stride": 32, "first_layer_is_expansion": True,
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
}  # fmt: skip


def of_timm(path: Path, default: Preprocessing) -> Usage:
    """Returns how a network is used, from timm's config.json next to its weights, if there is one.

    What it does not say is as in `default`.
    """
    config = _Config(path.with_name("config.json"))
    inner = config.values.get("pretrained_cfg")
    if isinstance(inner, dict):
        config.values |= {name: value for name, value in inner.items() if value is not None}
    told = config.has("mean", "std")
    assumed_size = size_in_name(path.name) or (224, 224)
    method = config.take("interpolation", lambda x: x in ("bilinear", "bicubic"), "bicubic")
    preprocess = Preprocessing(
        named_view(method, config.take("crop_pct", _is_fraction, default.crop)),
        tuple(config.take("mean", _is_color, default.mean)),
        tuple(config.take("std", _is_scale, default.std)),
        assumed=not told,
    )
    config.take("crop_mode", lambda x: x == "center", "center")
    if not (told and config.has("input_size")):
        note(
            f"{path} does not tell how to prepare pictures: as timm does by default, to "
            f"{assumed_size[0]} x {assumed_size[1]}"
        )
    _, *size = config.take(
        "input_size",
        lambda x: isinstance(x, list) and len(x) == 3 and all(map(_is_side, x)),
        (3, *assumed_size),
    )
    labels = config.take("label_names", _is_list_of_strings, None)
    return Usage(preprocess, (size[0], size[1]), labels and tuple(labels))


def of_transformers(path: Path, network: str) -> tuple[dict[str, Any], Usage]:
    """Returns the fields of the network, and how it is used, from the files next to the weights.

    The networks are ports of slim's. What the files do not say is as in the models that Google
    published. Raises UserError if they describe another network or another kind of preprocessing.
    """
    config = _Config(path.with_name("config.json"))
    if config.values.get("model_type", network) != network:
        note(f"{config.file} is ignored: it describes {str(config.values['model_type'])[:40]}")
        config.values = {}
    elif not config.values:
        note(f"{path} has no config.json next to it: assumed the padding and epsilon of slim")
    config.check_required()
    tf_padding = config.take("tf_padding", lambda x: isinstance(x, bool), True)
    fields = {
        **FIELDS[network],
        "padding": "same" if tf_padding else "symmetric",
        "bn_epsilon": config.take("layer_norm_eps", _is_fraction, 1e-3),
    }
    if network == "mobilenet_v2":
        fields["expansion"] = config.take("expand_ratio", lambda x: _is_number(x) and x > 0, 6)
    side = config.take("image_size", _is_side, 224)
    preprocess, crop = _preprocessing(path.with_name("preprocessor_config.json"), side)
    multi_label = config.values.get("problem_type") == "multi_label_classification"
    output = "sigmoid" if multi_label else "softmax"
    return fields, Usage(preprocess, (crop, crop), _labels(config.values.get("id2label")), output)


def _preprocessing(file: Path, side: int) -> tuple[Preprocessing, int]:
    """Returns the preprocessing and the side of the images; `side` is the network's own."""
    config = _Config(file)
    config.check_required()
    told = config.has("image_mean", "image_std")
    if not told:
        note(f"{file} does not tell how to prepare pictures: as for the models of Google")
    crop = _side(config.take("crop_size", _side, side))
    shorter = _side(
        config.take("size", lambda x: _side(x, square=False) >= crop, crop + BORDER), square=False
    )
    fraction = crop / shorter
    while int(crop / fraction) < shorter:  # how `Preprocessing` computes the shorter side
        fraction = math.nextafter(fraction, 0)
    method = RESAMPLING[config.take("resample", lambda x: x in (2, 3), 2)]
    mean = tuple(config.take("image_mean", _is_color, [0.5]))
    std = tuple(config.take("image_std", _is_scale, [0.5]))
    return Preprocessing(named_view(method, fraction), mean, std, assumed=not told), crop


class _Config:
    """The object in a JSON file; an empty one, after a note, if it cannot be read."""

    def __init__(self, file: Path):
        self.file = file
        self.values: dict[str, Any] = {}
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (OSError, ValueError, RecursionError) as error:
            note(f"{file} is ignored: {error}")
            return
        if isinstance(loaded, dict):
            self.values = loaded
        else:
            note(f"{file} is ignored: it does not hold an object")

    def has(self, *names: str) -> bool:
        """Returns whether there are all these values."""
        return all(self.values.get(name) is not None for name in names)

    def take(self, name: str, is_valid: Callable[[Any], Any], default: Any) -> Any:
        """Returns a value; `default` if it is missing, null or, after a note, invalid."""
        value = self.values.get(name)
        if value is None or is_valid(value):
            return default if value is None else value
        note(f"{self.file}: {name} = {str(value)[:60]} is not understood; used {default} instead")
        return default

    def check_required(self) -> None:
        """Raises UserError for a choice with which this package has no such network."""
        for name, value in REQUIRED.items():
            if self.values.get(name) not in (None, value):
                raise UserError(
                    f"{self.file} has {name} = {self.values[name]!r}, but only {value!r} can be "
                    "read"
                )
        scale = self.values.get("rescale_factor")
        if scale is not None and not (
            _is_number(scale) and math.isclose(scale, 1 / 255, rel_tol=1e-4)
        ):
            raise UserError(
                f"{self.file} has rescale_factor = {scale!r}, but only 1/255 can be read"
            )


def _side(value: Any, square: bool = True) -> int:
    """Returns the side that `value` describes, in pixels; 0 if it describes none.

    It is a number or an object: with height and width if it is `square`, or with shortest_edge.
    """
    if isinstance(value, dict):
        height = value.get("height")
        is_square = square and height is not None and height == value.get("width")
        value = height if is_square else value.get("shortest_edge")
    return value if _is_side(value) else 0


def _labels(labels: Any) -> tuple[str, ...] | None:
    """Returns the labels of a config; None if they are LABEL_0, LABEL_1, ... or incomplete."""
    if not isinstance(labels, Mapping) or not labels:
        return None
    names = [labels.get(str(i)) for i in range(len(labels))]
    if not _is_list_of_strings(names):
        return None
    generic = all(re.fullmatch(r"LABEL_\d+", str(name)) for name in names)
    return None if generic else tuple(map(str, names))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) in (1, 3) and all(map(_is_number, value))


def _is_scale(value: Any) -> bool:
    return _is_color(value) and min(value) > 0


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 4096


def _is_list_of_strings(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
