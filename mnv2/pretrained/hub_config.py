"""What timm and transformers tell in the JSON files next to weights on the Hugging Face hub.

A file or a value that is missing changes nothing; what is not understood is said in one line.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mnv2.preprocess.host import LARGEST_SIDE, named_view
from mnv2.pretrained.infer import Usage
from mnv2.pretrained.preprocessing import Preprocessing, size_in_name
from mnv2.pretrained.slim import FIELDS
from mnv2.runtime.errors import Check, UserError, choice, number, text, truth, whole
from mnv2.runtime.files import read_json
from mnv2.runtime.terminal import note

RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
BORDER = 32  # the shorter side is this much longer than the crop: 256 for 224

# Choices of the config of transformers with which this package has no such network.
REQUIRED = {
    "hidden_act": "relu6", "output_stride": 32, "first_layer_is_expansion": True,
    "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True,
}  # fmt: skip


def _list_of(check: Check, *counts: int) -> Check:
    """Returns the check for a list whose items pass a check, of one of some lengths, or of any."""

    def checked(field: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or (counts and len(value) not in counts):
            wanted = f" of {' or '.join(map(str, counts))}" if counts else ""
            raise UserError(f"{field} must be a list{wanted}, got {value!r}")
        return tuple(check(field, item) for item in value)

    return checked


def _edge(value: Any, *, square: bool) -> Any:
    """Returns the side that an object describes, such as {'shortest_edge': 256}; others stay."""
    if not isinstance(value, dict):
        return value
    height = value.get("height")
    is_square = square and height is not None and height == value.get("width")
    return height if is_square else value.get("shortest_edge")


_share = number(0, 1, low_open=True, high_open=False)
_side = whole(1, LARGEST_SIDE)
_color = _list_of(number(0), 1, 3)
_deviation = _list_of(number(0, low_open=True), 1, 3)


def of_timm(path: Path, default: Preprocessing) -> Usage:
    """Returns how a network is used, from config.json next to its weights, else as in `default`."""
    config = _Config(path.with_name("config.json"))
    inner = config.values.get("pretrained_cfg")
    if isinstance(inner, dict):
        config.values |= {name: value for name, value in inner.items() if value is not None}
    told = config.has("mean", "std")
    assumed_size = size_in_name(path.name) or (224, 224)
    method = config.take("interpolation", choice(("bilinear", "bicubic")), "bicubic")
    preprocess = Preprocessing(
        named_view(method, config.take("crop_pct", _share, default.crop)),
        config.take("mean", _color, default.mean),
        config.take("std", _deviation, default.std),
        assumed=not told,
    )
    config.take("crop_mode", choice(("center",)), "center")
    if not (told and config.has("input_size")):
        note(
            f"{path} does not tell how to prepare pictures: as timm does by default, to "
            f"{assumed_size[0]} x {assumed_size[1]}"
        )
    _, height, width = config.take("input_size", _list_of(_side, 3), (3, *assumed_size))
    labels = config.take("label_names", _list_of(text), None)
    return Usage(preprocess, (height, width), labels)


def of_transformers(path: Path, network: str) -> tuple[dict[str, Any], Usage]:
    """Returns the fields of the network, and how it is used, from the files next to the weights.

    What they do not say is as in Google's. Raises UserError if they describe another network.
    """
    config = _Config(path.with_name("config.json"))
    if config.values.get("model_type", network) != network:
        note(f"{config.file} is ignored: it describes {str(config.values['model_type'])[:40]}")
        config.values = {}
    elif not config.values:
        note(f"{path} has no config.json next to it: assumed the padding and epsilon of slim")
    config.check_required()
    tf_padding = config.take("tf_padding", truth, True)
    fields = {
        **FIELDS[network],
        "padding": "same" if tf_padding else "symmetric",
        "bn_epsilon": config.take("layer_norm_eps", _share, 1e-3),
    }
    if network == "mobilenet_v2":
        fields["expansion"] = config.take("expand_ratio", number(0, low_open=True), 6)
    side = config.take("image_size", _side, 224)
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
    crop = config.take("crop_size", lambda field, x: _side(field, _edge(x, square=True)), side)
    long = whole(crop, LARGEST_SIDE)
    size = config.take("size", lambda field, x: long(field, _edge(x, square=False)), crop + BORDER)
    fraction = crop / size
    while int(crop / fraction) < size:  # how `Preprocessing` computes the shorter side
        fraction = math.nextafter(fraction, 0)
    method = RESAMPLING[config.take("resample", whole(2, 3), 2)]
    mean = config.take("image_mean", _color, (0.5,))
    std = config.take("image_std", _deviation, (0.5,))
    return Preprocessing(named_view(method, fraction), mean, std, assumed=not told), crop


class _Config:
    """The object in a JSON file; an empty one, after a note, if it cannot be read."""

    def __init__(self, file: Path):
        self.file = file
        self.values: dict[str, Any] = {}
        try:
            self.values = read_json(file, "it is ignored") if file.exists() else {}
        except UserError as error:
            note(str(error))

    def has(self, *names: str) -> bool:
        """Returns whether there are all these values."""
        return all(self.values.get(name) is not None for name in names)

    def take(self, name: str, check: Check, default: Any) -> Any:
        """Returns a value; `default` if it is missing, null or, after a note, invalid."""
        value = self.values.get(name)
        if value is None:
            return default
        try:
            return check(name, value)
        except UserError as error:
            note(f"{self.file}: {str(error)[:120]}; used {default} instead")
            return default

    def check_required(self) -> None:
        """Raises UserError for a choice with which this package has no such network."""
        for name, wanted in REQUIRED.items():
            value = self.values.get(name)
            if value not in (None, wanted):
                raise UserError(
                    f"{self.file.name} has {name} = {value!r}, but only {wanted!r} can be read"
                )
        scale = self.values.get("rescale_factor")
        if scale is not None and abs(255 * number(0)("rescale_factor", scale) - 1) > 1e-4:
            raise UserError(
                f"{self.file.name} has rescale_factor = {scale!r}, but only 1/255 can be read"
            )


def _labels(labels: Any) -> tuple[str, ...] | None:
    """Returns the labels of a config; None if they are LABEL_0, LABEL_1, ... or incomplete."""
    if not isinstance(labels, Mapping) or not labels:
        return None
    names: list[Any] = [labels.get(str(i)) for i in range(len(labels))]
    are_texts = all(isinstance(name, str) for name in names)
    generic = are_texts and all(re.fullmatch(r"LABEL_\d+", name) for name in names)
    return tuple(names) if are_texts and not generic else None
