"""Parses the JSON in which Keras 2 and 3 describe a saved model: its input, rescaling and head.

Nothing in the JSON is run. Layers are recognised by their class.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# The classes of the layers of MobileNet and MobileNetV2 up to their pooled features.
BACKBONE_LAYERS = (
    *("Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"),
    *("InputLayer", "Activation"),
)
# The classes of layers that do nothing in evaluation.
IDENTITY_LAYERS = ("InputLayer", "Dropout", "SpatialDropout2D", "ActivityRegularization")
# The activations that may end a model -> the function from logits to probabilities.
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "softmax"}


@dataclasses.dataclass(frozen=True)
class KerasModel:
    """What the JSON tells about a MobileNet, or about a model that contains one.

    image_size   (height, width) of the input
    preprocess   the preprocessing, with the rescaling that the model does itself
    dense        (name, activation) of each dense layer of a user's head, in order; the last
                 activation is always `linear`
    output       the function from logits to probabilities
    """

    image_size: tuple[int, int]
    preprocess: Preprocessing
    dense: Sequence[tuple[str, str]]
    output: str


def parse(text: str, default: Preprocessing, source: str) -> KerasModel:
    """Parses the JSON of a model. `source` names the file in messages.

    `default` is the preprocessing of a model that does not rescale its input itself.

    Raises UserError if the model contains no MobileNet, or if its head is anything other than
    global average pooling and dense layers.
    """
    layers = list(_flatten(json.loads(text)["config"]))
    if not any(layer["class_name"] == "DepthwiseConv2D" for layer in layers):
        raise UserError(f"{source} holds no MobileNet or MobileNetV2 of keras.applications")
    last = max(
        (i for i, layer in enumerate(layers) if layer["class_name"] == "BatchNormalization"),
        default=-1,
    )
    before = [layer for layer in layers[: last + 1] if layer["class_name"] not in BACKBONE_LAYERS]
    after = [layer for layer in layers[last + 1 :] if layer["class_name"] != "ReLU"]
    own_top = {"predictions", "Logits", "conv_preds"} & {layer["config"]["name"] for layer in after}
    dense, output = ((), "softmax") if own_top else _parse_head(after, source)
    scale, offset, found = _parse_rescaling(before)
    preprocess = default
    if dense:  # a user's own pictures are resized without a crop, as Keras' loaders do it
        preprocess = dataclasses.replace(default, method="mnv2", crop=1.0)
    if found:
        std = tuple(1 / (255 * factor) for factor in scale)
        mean = tuple(-shift * s for shift, s in zip(offset, std, strict=True))
        preprocess = dataclasses.replace(preprocess, mean=mean, std=std)
    return KerasModel(_image_size(layers), preprocess, dense, output)


def _flatten(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields all layers in order; a nested model is replaced by its layers."""
    for layer in config["layers"]:
        inner = layer["config"]
        yield from _flatten(inner) if "layers" in inner else [layer]


def _parse_head(
    layers: Sequence[dict[str, Any]], source: str
) -> tuple[Sequence[tuple[str, str]], str]:
    """Returns the `dense` and `output` of a KerasModel from the layers after its backbone."""
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
        elif kind not in IDENTITY_LAYERS:
            raise UserError(
                f"{source}: layer {config['name']!r} ({kind}) is not supported: a head may have "
                "GlobalAveragePooling2D, Dropout and Dense; save the backbone alone"
            )
    if not dense:
        return (), "softmax"
    for name, activation in dense[:-1]:
        if activation not in ACTIVATIONS:
            raise UserError(
                f"{source}: activation {activation!r} of layer {name!r} is not supported"
            )
    name, activation = dense[-1]
    if activation not in OUTPUTS:
        raise UserError(f"{source}: the last activation must give probabilities, not {activation}")
    return (*dense[:-1], (name, "linear")), OUTPUTS[activation]


def _activation(value: Any) -> str:
    """Returns the name of an activation; Keras 3 writes some as {'class_name': 'ReLU', ...}."""
    name = value.get("config", value.get("class_name")) if isinstance(value, dict) else value
    return str(name).lower()


def _parse_rescaling(
    layers: Sequence[dict[str, Any]],
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Combines Rescaling layers and the operations of `preprocess_input` to x * scale + offset.

    Returns scale, offset, and whether there is any rescaling.
    """
    scale: tuple[float, ...] = (1.0,)
    offset: tuple[float, ...] = (0.0,)
    found = False

    def then(factor: Sequence[float], shift: Sequence[float]) -> None:
        nonlocal scale, offset, found
        channels = max(len(scale), len(factor), len(shift))
        a, b, c, d = (_per_channel(v, channels) for v in (scale, offset, factor, shift))
        scale = tuple(x * f for x, f in zip(a, c, strict=True))
        offset = tuple(x * f + s for x, f, s in zip(b, c, d, strict=True))
        found = True

    for layer in layers:
        kind, config = layer["class_name"], layer["config"]
        operation = str(config.get("function", kind)).lower().rpartition(".")[2]
        if kind == "Rescaling":
            then(_as_tuple(config["scale"]), _as_tuple(config["offset"]))
        elif operation in ("truediv", "truedivide"):
            then((1 / _constant_in(layer["inbound_nodes"]),), (0.0,))
        elif operation in ("subtract", "sub"):
            then((1.0,), (-_constant_in(layer["inbound_nodes"]),))
    return scale, offset, found


def _as_tuple(value: Any) -> tuple[float, ...]:
    return tuple(map(float, value)) if isinstance(value, list) else (float(value),)


def _per_channel(values: Sequence[float], channels: int) -> Sequence[float]:
    """Repeats a single value for every channel."""
    return values if len(values) == channels else [values[0]] * channels


def _constant_in(nodes: Any) -> float:
    """Finds the one number among the arguments of an operation."""
    items = nodes.values() if isinstance(nodes, dict) else nodes
    for item in items:
        if isinstance(item, float):
            return item
        if isinstance(item, dict | list) and (value := _constant_in(item)):
            return value
    return 0.0


def _image_size(layers: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Returns the (height, width) of the first input of fixed size; 224 x 224 if there is none."""
    for layer in layers:
        config = layer["config"]
        shape = config.get("batch_shape") or config.get("batch_input_shape") or [None] * 4
        if shape[1] and shape[2]:
            return shape[1], shape[2]
    return 224, 224
