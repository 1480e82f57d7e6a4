"""What a saved Keras model says of itself beside its weights: input, rescaling, head.

Keras 2 and 3 describe a model in JSON. Nothing of it is run; layers are recognised by class.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mnv2.pretrained.network import ACTIVATIONS
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# Layers that evaluation does not see.
WITHOUT_EFFECT = ("InputLayer", "Dropout", "SpatialDropout2D", "ActivityRegularization")
# The output activations whose arguments are logits.
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "softmax"}


@dataclasses.dataclass(frozen=True)
class Description:
    """A model around, or with, a MobileNet.

    `dense` are its head's dense layers, (name, activation) in order, the last one's activation
    being `linear`; `output` is what follows the logits.
    """

    image_size: tuple[int, int]
    preprocess: Preprocessing
    dense: Sequence[tuple[str, str]]
    output: str


def describe(text: str, default: Preprocessing, source: str) -> Description:
    """Reads a model's JSON. Raises UserError for a head that is not pooling and dense layers."""
    layers = list(_layers(json.loads(text)["config"]))
    if not any(layer["class_name"] == "DepthwiseConv2D" for layer in layers):
        raise UserError(f"{source} holds no MobileNet or MobileNetV2 of keras.applications")
    last = max(
        (i for i, layer in enumerate(layers) if layer["class_name"] == "BatchNormalization"),
        default=-1,
    )
    before = [layer for layer in layers[: last + 1] if not _of_backbone(layer)]
    after = [layer for layer in layers[last + 1 :] if layer["class_name"] != "ReLU"]
    own_top = {"predictions", "Logits", "conv_preds"} & {layer["config"]["name"] for layer in after}
    dense, output = ((), "softmax") if own_top else _head(after, source)
    scale, offset, found = _rescaling(before)
    preprocess = default
    if dense:  # pictures of a user's own are resized whole, as Keras' loaders do
        preprocess = dataclasses.replace(default, method="mnv2", crop=1.0)
    if found:
        std = tuple(1 / (255 * factor) for factor in scale)
        mean = tuple(-shift * s for shift, s in zip(offset, std, strict=True))
        preprocess = dataclasses.replace(preprocess, mean=mean, std=std)
    return Description(_image_size(layers), preprocess, dense, output)


def _layers(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every layer, those of nested models in their place."""
    for layer in config["layers"]:
        inner = layer["config"]
        yield from _layers(inner) if "layers" in inner else [layer]


def _of_backbone(layer: dict[str, Any]) -> bool:
    return layer["class_name"] in (
        *("Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"),
        *("InputLayer", "Activation"),
    )


def _head(layers: Sequence[dict[str, Any]], source: str) -> tuple[Sequence[tuple[str, str]], str]:
    dense: list[tuple[str, str]] = []
    pooled = False
    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        if kind == "GlobalAveragePooling2D":
            pooled = True
        elif kind == "Dense" and pooled:
            dense.append((config["name"], _activation(config["activation"])))
        elif kind in ("Activation", "Softmax") and dense and dense[-1][1] == "linear":
            activation = "softmax" if kind == "Softmax" else _activation(config["activation"])
            dense[-1] = (dense[-1][0], activation)
        elif kind not in WITHOUT_EFFECT:
            raise UserError(
                f"{source}: layer {config['name']!r} ({kind}) is not read: a head is "
                "GlobalAveragePooling2D, Dropout and Dense; save the backbone alone"
            )
    if not dense:
        return (), "softmax"
    for name, activation in dense[:-1]:
        if activation not in ACTIVATIONS:
            raise UserError(f"{source}: activation {activation!r} of layer {name!r} is not read")
    name, activation = dense[-1]
    if activation not in OUTPUTS:
        raise UserError(f"{source}: the last activation must give probabilities, not {activation}")
    return (*dense[:-1], (name, "linear")), OUTPUTS[activation]


def _activation(value: Any) -> str:
    """Keras 3 writes some as {'class_name': 'ReLU', ...}."""
    name = value.get("config", value.get("class_name")) if isinstance(value, dict) else value
    return str(name).lower()


def _rescaling(
    layers: Sequence[dict[str, Any]],
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """x * scale + offset, from Rescaling layers and the operations of `preprocess_input`."""
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    found = False

    def then(factor: Sequence[float], shift: Sequence[float]) -> None:
        nonlocal scale, offset, found
        channels = max(len(scale), len(factor), len(shift))
        a, b, c, d = (_wide(v, channels) for v in (scale, offset, factor, shift))
        scale = tuple(x * f for x, f in zip(a, c, strict=True))
        offset = tuple(x * f + s for x, f, s in zip(b, c, d, strict=True))
        found = True

    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        operation = str(config.get("function", kind)).lower().rpartition(".")[2]
        if kind == "Rescaling":
            then(_tuple(config["scale"]), _tuple(config["offset"]))
        elif operation in ("truediv", "truedivide"):
            then((1 / _constant(layer["inbound_nodes"]),), (0.0,))
        elif operation in ("subtract", "sub"):
            then((1.0,), (-_constant(layer["inbound_nodes"]),))
    return scale, offset, found


def _tuple(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


def _wide(values: Sequence[float], channels: int) -> Sequence[float]:
    return values if len(values) == channels else [values[0]] * channels


def _constant(nodes: Any) -> float:
    """The one number among an operation's arguments."""
    inner = nodes.values() if isinstance(nodes, dict) else nodes
    for item in inner:
        if isinstance(item, float):
            return item
        if isinstance(item, dict | list) and (value := _constant(item)):
            return value
    return 0.0


def _image_size(layers: Sequence[dict[str, Any]]) -> tuple[int, int]:
    for layer in layers:
        config = layer["config"]
        shape = config.get("batch_shape") or config.get("batch_input_shape") or [None] * 4
        if shape[1] and shape[2]:
            return shape[1], shape[2]
    return 224, 224
