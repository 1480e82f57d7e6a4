"""Finds the network in a saved Keras model, and reads what is before and after it.

Before it: the size and scaling of pixels. After it: global average pooling and dense layers. The
layers form a chain, each of which is understood or named in an error.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mnv2.models.mobilenet_v1 import IMAGENET_STRIDES as V1_STRIDES
from mnv2.models.mobilenet_v2 import IMAGENET_STRIDES as V2_STRIDES
from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.preprocess.host import named_view
from mnv2.pretrained import keras_pixels
from mnv2.pretrained.infer import DenseWeights
from mnv2.pretrained.keras_graph import Graph, Layer
from mnv2.pretrained.keras_pixels import IDENTITY_LAYERS
from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.names import NUM_BLOCKS
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

# The classes of the layers of MobileNet and MobileNetV2 up to their pooled features.
BACKBONE_LAYERS = (
    *("Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"),
    "Activation",
)
# The classes of the layers from the last depthwise convolution to the last map.
LAST_LAYERS = {
    "mobilenet_v1": ("BatchNormalization", "ReLU", "Conv2D", "BatchNormalization", "ReLU"),
    "mobilenet_v2": (
        *("BatchNormalization", "ReLU", "Conv2D", "BatchNormalization"),
        *("Conv2D", "BatchNormalization", "ReLU"),
    ),
}
# The strides of the depthwise convolutions.
STRIDES = {
    "mobilenet_v1": V1_STRIDES[1:],
    "mobilenet_v2": tuple(
        stride if i == 0 else 1
        for stride, count in zip(V2_STRIDES[1:], REPEATS, strict=True)
        for i in range(count)
    ),
}
# The layers that classify in the models of keras.applications.
TOP_LAYERS = ("predictions", "Logits", "conv_preds")
IMAGENET_CLASSES = (1000, 1001)  # with another number, such a layer has a user's own classes
# The activations that may end a model -> the function from logits to probabilities.
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "softmax"}
# How pictures are cropped and resized for a user's own model.
KERAS_VIEW: dict[str, Any] = {"view": named_view("keras")}
EPSILON = 1e-3  # of the batch norm of keras.applications


@dataclasses.dataclass(frozen=True)
class KerasModel:
    """What a saved model does around its MobileNet.

    preprocess   the preprocessing, with the scaling that the model does itself
    image_size   (height, width) of the network's input; None if the file does not tell
    head         the dense layers of a user's head, in order; the last activation is `linear`.
                 Empty without a head, and for the classes of ImageNet
    output       the function from logits to probabilities
    """

    preprocess: Preprocessing
    image_size: tuple[int, int] | None
    head: Sequence[DenseWeights]
    output: str


def read(
    graph: Graph, tensors: dict[str, np.ndarray], default: Preprocessing, source: str
) -> KerasModel:
    """Reads a model with the given `tensors`, by LAYER/VARIABLE. `source` names the file.

    Everything that is not of the network itself is removed from `tensors`. `default` is the
    preprocessing of a model that does not scale its input itself.

    Raises UserError if the model contains no MobileNet, or if anything around it is not understood.
    """
    network, before, stem = _find_network(graph, source)
    after = _walk_back(graph.output, "DepthwiseConv2D", source)[1:]
    after = _without_last_layers(after, network, source)
    around = {id(layer) for layer in (*before, *after)}
    _check_backbone([x for x in graph.layers if id(x) not in around], network, source)

    pixels = keras_pixels.read(before, stem, tensors, source)
    rest = dict(tensors)
    head, output, names = _read_head(after, rest, pixels.size, source)
    own_top = len(head) == 1 and names[0] in TOP_LAYERS and head[0].bias.size in IMAGENET_CLASSES
    if head and not own_top:  # a user's own pictures are used without a crop
        default = dataclasses.replace(default, **KERAS_VIEW)
    if own_top:
        head = []
    else:
        tensors.clear()
        tensors.update(rest)
    return KerasModel(pixels.preprocessing(default), pixels.size, head, output)


def read_backbone(
    graph: Graph,
    tensors: dict[str, np.ndarray],
    names: Sequence[str],
    default: Preprocessing,
    source: str,
) -> KerasModel:
    """Reads a model as `read` does, but not what is after the network, whatever that is.

    `names` are those of the tensors of the network. All others are removed from `tensors`.
    """
    network, before, stem = _find_network(graph, source)
    own = {name.partition("/")[0] for name in names}
    _check_backbone([layer for layer in graph.layers if layer.name in own], network, source)
    pixels = keras_pixels.read(before, stem, tensors, source)
    for name in tensors.keys() - set(names):
        del tensors[name]
    default = dataclasses.replace(default, **KERAS_VIEW)
    return KerasModel(pixels.preprocessing(default), pixels.size, [], "softmax")


def _find_network(graph: Graph, source: str) -> tuple[str, list[Layer], Layer]:
    """Returns the name of the network, the layers before its first convolution, and that layer."""
    depthwise = [layer for layer in graph.layers if layer.kind == "DepthwiseConv2D"]
    network = {count: name for name, count in NUM_BLOCKS.items()}.get(len(depthwise))
    if network is None:
        raise UserError(
            f"{source} holds no MobileNet or MobileNetV2 of keras.applications: it has "
            f"{len(depthwise)} depthwise convolutions, not 13 or 17"
        )
    stem = _walk_back(depthwise[0], "Conv2D", source)[0]
    return network, _walk_back(stem, None, source)[:-1], stem


def _walk_back(layer: Layer, kind: str | None, source: str) -> list[Layer]:
    """Returns the chain that ends in `layer`, from the nearest layer of a kind or the input."""
    chain = [layer]
    while kind is None or chain[-1].kind != kind or len(chain) == 1:
        before = chain[-1].only_input(source)
        if before is None:
            break
        chain.append(before)
    if kind is not None and chain[-1].kind != kind:
        raise UserError(f"{source} holds no MobileNet or MobileNetV2 of keras.applications")
    return chain[::-1]


def _without_last_layers(layers: list[Layer], network: str, source: str) -> list[Layer]:
    """Removes the last layers of the network from those after its last depthwise convolution."""
    expected = LAST_LAYERS[network]
    for i, kind in enumerate(expected):
        if i == len(layers):
            raise UserError(f"{source} lacks the last layers of its {network}")
        found = "ReLU" if layers[i].kind == "Activation" else layers[i].kind
        if found != kind:
            raise UserError(
                f"{source}: {layers[i]} is not supported there: a whole {network} has {kind}"
            )
    return layers[len(expected) :]


def _check_backbone(layers: Sequence[Layer], network: str, source: str) -> None:
    """Raises UserError unless layers compute what those of keras.applications do."""
    strides = iter(STRIDES[network])
    for layer in layers:
        config, problem = layer.config, ""
        if layer.kind not in BACKBONE_LAYERS and layer.kind not in IDENTITY_LAYERS:
            problem = "does not belong to it"
        elif layer.kind == "BatchNormalization" and not math.isclose(config["epsilon"], EPSILON):
            problem = f"has the epsilon {config['epsilon']}, not {EPSILON}"
        elif layer.kind in ("ReLU", "Activation") and _activation_of(layer) != "relu6":
            problem = "is not ReLU6"
        elif layer.kind == "DepthwiseConv2D":
            stride = next(strides)
            if tuple(config["strides"]) != (stride, stride):
                problem = f"has the strides {config['strides']}, not {stride}"
        if config.get("data_format", "channels_last") != "channels_last":
            problem = f"has the data format {config['data_format']}, not channels_last"
        if problem:
            raise UserError(
                f"{source} is not the {network} of keras.applications: {layer} {problem}"
            )


class _Dense:
    """A dense layer that is not finished: batch norm and an activation may follow."""

    def __init__(self, name: str, kernel: np.ndarray, bias: np.ndarray, activation: str):
        self.name, self.kernel, self.bias, self.activation = name, kernel, bias, activation


def _read_head(
    layers: Sequence[Layer],
    tensors: dict[str, np.ndarray],
    size: tuple[int, int] | None,
    source: str,
) -> tuple[list[DenseWeights], str, list[str]]:
    """Returns the dense layers after the network, the output as in `KerasModel`, and their names.

    Batch norm is folded into the dense layer before or after it.
    """
    whole = keras_pixels.map_size(size) if size else None
    pooled = whole == (1, 1)
    dense: list[_Dense] = []
    pending: keras_pixels.Affine | None = None  # batch norm before the next dense layer
    for layer in layers:
        kind, config = layer.kind, layer.config
        last = dense[-1] if dense and pending is None else None
        if kind in IDENTITY_LAYERS or (pooled and _keeps_features(layer, tensors, dense)):
            continue
        if kind == "GlobalAveragePooling2D" or (
            kind == "AveragePooling2D" and whole and tuple(config["pool_size"]) == whole
        ):
            pooled = True
        elif pooled and (kind == "Dense" or (kind == "Conv2D" and _is_dense(config))):
            new = _dense(layer, tensors, source)
            if pending is not None:
                scale, offset = pending
                new.bias = new.bias + (np.broadcast_to(offset, len(new.kernel)) @ new.kernel)
                new.kernel = np.reshape(scale, (-1, 1)) * new.kernel
                pending = None
            dense.append(new)
        elif pooled and kind == "BatchNormalization" and pending is None:
            try:
                scale, offset = keras_pixels.batch_norm(layer, tensors)
            except KeyError as error:
                raise UserError(f"{source} lacks {error.args[0]}") from None
            if last and last.activation == "linear":
                last.kernel, last.bias = last.kernel * scale, last.bias * scale + offset
            else:
                pending = scale, offset
        elif last and last.activation == "linear" and (name := _activation_of(layer)):
            last.activation = name
        else:
            raise _unsupported(layer, whole, pooled, source)
    if pending is not None:
        raise UserError(f"{source}: a head that ends in batch norm is not supported")
    return _head_of(dense, source) if dense else ([], "softmax", [])


def _head_of(dense: Sequence[_Dense], source: str) -> tuple[list[DenseWeights], str, list[str]]:
    """Returns what `_read_head` does. Raises UserError for activations that a head cannot have."""
    for item in dense[:-1]:
        if item.activation not in ACTIVATIONS:
            raise UserError(
                f"{source}: activation {item.activation!r} of layer {item.name!r} is not supported"
            )
    if dense[-1].activation not in OUTPUTS:
        raise UserError(
            f"{source}: the last activation must give probabilities, not {dense[-1].activation}"
        )
    output, dense[-1].activation = OUTPUTS[dense[-1].activation], "linear"
    head = [
        DenseWeights(x.kernel.astype(np.float32), x.bias.astype(np.float32), x.activation)
        for x in dense
    ]
    return head, output, [x.name for x in dense]


def _keeps_features(
    layer: Layer, tensors: Mapping[str, np.ndarray], dense: Sequence[_Dense]
) -> bool:
    """Returns whether a layer changes only the shape of pooled features, or nothing at all."""
    if layer.kind in ("Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        return True
    if layer.kind == "Reshape":
        features = dense[-1].bias.size if dense else _features(tensors)
        *others, last = layer.config["target_shape"]
        return all(side in (1, -1) for side in others) and last in (features, -1)
    return layer.kind == "Activation" and _activation(layer.config["activation"]) == "linear"


def _features(tensors: Mapping[str, np.ndarray]) -> int:
    """Returns the number of channels of the network's last map."""
    biases = [tensors.get(f"{name}/beta") for name in ("Conv_1_bn", "conv_pw_13_bn")]
    return next((bias.size for bias in biases if bias is not None), 0)


def _is_dense(config: Mapping[str, Any]) -> bool:
    """Returns whether a convolution of a 1 x 1 map is a dense layer."""
    return tuple(config["kernel_size"]) == (1, 1) and config.get("groups", 1) == 1


def _dense(layer: Layer, tensors: dict[str, np.ndarray], source: str) -> _Dense:
    kernel = tensors.pop(f"{layer.name}/kernel", None)
    if kernel is None:
        raise UserError(f"{source} lacks {layer.name}/kernel")
    kernel = kernel.reshape(-1, kernel.shape[-1])
    bias = tensors.pop(f"{layer.name}/bias", None)
    if bias is None:
        if layer.config.get("use_bias", True):
            raise UserError(f"{source} lacks {layer.name}/bias")
        bias = np.zeros(kernel.shape[-1], np.float32)
    return _Dense(layer.name, kernel, bias, _activation(layer.config["activation"]))


def _activation_of(layer: Layer) -> str:
    """Returns the activation that a layer applies; an empty name if it is none, or not known."""
    if layer.kind == "Activation":
        return _activation(layer.config["activation"])
    if layer.kind == "Softmax":
        return "softmax" if layer.config.get("axis", -1) in (-1, [-1]) else ""
    return _relu(layer.config) if layer.kind == "ReLU" else ""


def _activation(value: Any) -> str:
    """Returns the name of an activation; Keras 3 writes some as {'class_name': 'ReLU', ...}."""
    if isinstance(value, dict):
        config = value.get("config")
        if value.get("class_name") == "ReLU" and isinstance(config, dict):
            return _relu(config)
        value = config if isinstance(config, str) else value.get("class_name")
    return "linear" if value is None else str(value).lower()


def _relu(config: Mapping[str, Any]) -> str:
    """Returns the name of a ReLU layer's function."""
    slope = config.get("negative_slope") or config.get("alpha") or 0
    if np.any(slope) or config.get("threshold"):
        return "leaky or shifted relu"
    limit = config.get("max_value")
    return {None: "relu", 6: "relu6"}.get(limit, f"relu up to {limit}")


def _unsupported(
    layer: Layer, whole: tuple[int, int] | None, pooled: bool, source: str
) -> UserError:
    reason = ""
    if not pooled and layer.kind not in ("GlobalMaxPooling2D", "MaxPooling2D"):
        size = f" of {whole[0]} x {whole[1]}" if whole else ""
        reason = f" on the map{size}, which is not averaged as a whole"
    return UserError(
        f"{source}: {layer} is not supported{reason}: a head may have GlobalAveragePooling2D, "
        "Dropout, BatchNormalization and Dense; save the backbone alone"
    )
