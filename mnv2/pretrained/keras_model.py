"""Finds the network in a saved Keras model, and reads what is before and after it.

The layers form a chain, each of which is understood, does nothing in evaluation, or is refused.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnv2.models.mobilenet_v1 import IMAGENET_STRIDES as V1_STRIDES
from mnv2.models.mobilenet_v2 import CHANNELS, REPEATS, blocks
from mnv2.models.mobilenet_v2 import IMAGENET_STRIDES as V2_STRIDES
from mnv2.preprocess.host import named_view
from mnv2.preprocess.resizing import Size
from mnv2.pretrained.keras_graph import TENSOR, Graph, Layer
from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.names import NUM_BLOCKS
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

# The classes of the layers of MobileNet and MobileNetV2 up to their pooled features.
BACKBONE_LAYERS = (
    *("Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"),
    "Activation",
)
# The names that the first and the last layer with variables have in keras.applications.
ENDS = {"mobilenet_v1": ("conv1", "conv_pw_13_bn"), "mobilenet_v2": ("Conv1", "Conv_1_bn")}
# The ReLU6 of the stem, two of each block, and V2's last one instead of its first expansion's.
RELUS = {network: 1 + 2 * count for network, count in NUM_BLOCKS.items()}
# The strides of the depthwise convolutions.
STRIDES = {
    "mobilenet_v1": V1_STRIDES[1:],
    "mobilenet_v2": tuple(stride for _, stride in blocks(CHANNELS, REPEATS, V2_STRIDES[1:])),
}
# The activations that may end a model -> the function from logits to probabilities.
OUTPUTS = {"softmax": "softmax", "sigmoid": "sigmoid", "linear": "softmax"}
# How pictures are cropped and resized for a user's own model.
KERAS_VIEW: dict[str, Any] = {"view": named_view("keras")}
EPSILON = 1e-3  # of the batch norm of keras.applications
# The classes of layers that do nothing in evaluation, as do Random... except for RandomCrop.
IDENTITY_LAYERS = (
    *("InputLayer", "Identity", "Dropout", "SpatialDropout2D", "ActivityRegularization"),
    *("GaussianDropout", "GaussianNoise", "AlphaDropout", "AugMix", "RandAugment"),
)
# The interpolations of Resizing and UpSampling2D -> the method of Preprocessing.
METHODS = {"bilinear": "tensorflow", "nearest": "nearest"}
# The modules of keras.applications whose preprocess_input maps [0, 255] to [-1, 1].
MINUS_ONE_TO_ONE = (
    *("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "nasnet"),
    *("resnet_v2", "xception"),
)
# The names that versions of Keras and TensorFlow give to operations on tensors.
OPERATIONS = {
    **dict.fromkeys(("add", "addv2"), np.add),
    **dict.fromkeys(("subtract", "sub"), np.subtract),
    **dict.fromkeys(("multiply", "mul"), np.multiply),
    **dict.fromkeys(("divide", "truedivide", "truediv", "realdiv"), np.divide),
    **dict.fromkeys(("negative", "neg"), np.negative),
}

Tensors = dict[str, np.ndarray]  # by LAYER/VARIABLE


class Dense(NamedTuple):
    """One dense layer of a head: its weights, and the activation that follows it."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    activation: str


class Model(NamedTuple):
    """What a model does around its network.

    tensors  of the network itself, by LAYER/VARIABLE
    changes  fields of `Preprocessing` that layers before the network demand
    size     (height, width) of the images at the network; None if the file does not tell it
    head     the dense layers that classify, in order; the last activation is `linear`
    output   the function from logits to probabilities
    """

    tensors: Tensors
    changes: dict[str, Any]
    size: Size | None
    head: Sequence[Dense]
    output: str


def read(
    graph: Graph,
    network: str,
    tensors: Tensors,
    names: Collection[str],
    path: Path,
    need_head: bool,
) -> Model:
    """Reads what the model in a file, with `tensors` by LAYER/VARIABLE, does around its MobileNet.

    Raises UserError if it contains no MobileNet, or if anything around it is not understood. Unless
    `need_head`, a head that is not understood is left out, after a note.
    """
    *before, stem = _layers_before(graph, network)
    own = dict(tensors)
    changes, size = read_pixels(before, own)
    if changes.get("assumed"):
        note(f"{path}: took its preprocess_input, of which it tells only the name, for MobileNet's")
    size = size or _fixed_size(stem)  # of the network's own model, if the model takes any size
    rest = dict(own)
    try:
        after = walk_back(graph.output, ENDS[network][1])[2:]  # a ReLU6 follows
        around = {id(layer) for layer in (*before, *after)}
        backbone = [layer for layer in graph.layers if id(layer) not in around]
        _check_backbone(backbone, network)
        relus = sum(_activation_of(layer) == "relu6" for layer in backbone)
        if relus != RELUS[network]:
            raise UserError(
                f"{network} of keras.applications has {RELUS[network]} ReLU6, not {relus}"
            )
        return Model(rest, changes, size, *_read_head(after, rest, size))
    except UserError as error:
        if need_head:
            raise
        layers = [name.partition("/")[0] for name in names]
        _check_backbone([layer for layer in graph.layers if layer.name in layers], network)
        note(f"{path}: {error}; not needed: only the network before its head is used")
        rest = {name: x for name, x in own.items() if name in names}
        return Model(rest, KERAS_VIEW | changes, size, (), "softmax")


def _layers_before(graph: Graph, network: str) -> list[Layer]:
    """Returns the layers up to the first convolution of the network, which is the last of them."""
    num_depthwise = sum(layer.kind == "DepthwiseConv2D" for layer in graph.layers)
    layers = {layer.name: layer for layer in graph.layers}
    if num_depthwise != NUM_BLOCKS[network] or not layers.keys() >= set(ENDS[network]):
        raise UserError(
            f"it holds no MobileNet or MobileNetV2 of keras.applications: {num_depthwise} "
            "depthwise convolutions, not 13 from conv1 to conv_pw_13_bn, 17 from Conv1 to Conv_1_bn"
        )
    return walk_back(layers[ENDS[network][0]], None)


def walk_back(layer: Layer, name: str | None) -> list[Layer]:
    """Returns the chain from the layer called `name`, or the input of the model, to `layer`."""
    chain = [layer]
    while chain[-1].name != name and chain[-1].inputs:
        if len(chain[-1].inputs) > 1 or chain[-1].calls > 1:
            raise UserError(
                f"{chain[-1]} is not supported: it has several inputs, or is used twice"
            )
        chain += chain[-1].inputs
    if name is not None and chain[-1].name != name:
        raise UserError(f"its output does not come from the layer {name}")
    return chain[::-1]


def _check_backbone(layers: Sequence[Layer], network: str) -> None:
    """Raises UserError unless layers compute what those of keras.applications do."""
    strides = iter(STRIDES[network])
    for layer in layers:
        config, problem = layer.config, ""
        if layer.kind not in BACKBONE_LAYERS and not _is_identity(layer):
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
            raise UserError(f"it is not the {network} of keras.applications: {layer} {problem}")


def read_pixels(layers: Sequence[Layer], tensors: Tensors) -> tuple[dict[str, Any], Size | None]:
    """Combines the layers from the input of a model to its network, and takes their `tensors`.

    Returns the fields of Preprocessing that they change, and the (height, width) at the network, if
    they tell it. Raises UserError if one is not understood.
    """
    ends = np.array([[0.0], [255.0]])  # the darkest and the brightest pixel: all layers are linear
    changes: dict[str, Any] = {}
    size = None
    for layer in layers:
        size = _fixed_size(layer) or size
        if _is_identity(layer) or _does_nothing(layer):
            continue
        if layer.kind in ("Resizing", "UpSampling2D") and "view" not in changes:
            first = size
            size, method = _resizing(layer, first)
            changes["view"] = named_view(method, first=first)
            continue
        ends = _scaled(ends, layer, tensors)
        is_assumed = layer.kind == "Lambda" and not _application(layer.config)
        changes["assumed"] = changes.get("assumed", False) or is_assumed
    low, high = ends
    if not np.isfinite(ends).all() or (low == high).any():
        raise UserError(
            f"layers make {ends.tolist()} of the pixel 0 and of 255: no picture is left"
        )
    if "assumed" in changes:
        std = 1 / (high - low)
        changes |= {"mean": tuple((-low * std).tolist()), "std": tuple(std.tolist())}
    return changes, size


def _batch_norm(layer: Layer, tensors: Tensors) -> tuple[np.ndarray, np.ndarray]:
    """Returns the factor and offset of a batch norm; removes its variables from `tensors`."""
    mean, variance = (
        _pop(layer, name, tensors).astype(np.float64) for name in ("moving_mean", "moving_variance")
    )
    factor = 1 / np.sqrt(variance + layer.config["epsilon"])
    if layer.config.get("scale", True):
        factor *= _pop(layer, "gamma", tensors)
    offset = -mean * factor
    if layer.config.get("center", True):
        offset += _pop(layer, "beta", tensors)
    return factor, offset


def _pop(layer: Layer, name: str, tensors: Tensors) -> np.ndarray:
    """Removes a variable of a layer from `tensors`, and returns it."""
    if f"{layer.name}/{name}" not in tensors:
        raise UserError(f"it lacks {layer.name}/{name}")
    return tensors.pop(f"{layer.name}/{name}")


def _not_understood(layer: Layer) -> UserError:
    return UserError(
        f"{layer} before the network is not understood: save the model from the layer "
        "after it on, and give its scaling with --mean and --std"
    )


def _scaled(pixels: np.ndarray, layer: Layer, tensors: Tensors) -> np.ndarray:
    """Returns what a layer that is linear in each channel makes of pixels (n c)."""
    config, operation = layer.config, OPERATIONS.get(layer.kind.lower())
    try:
        if layer.kind == "Rescaling":
            return pixels * _constant(config["scale"]) + _constant(config["offset"])
        if layer.kind == "Normalization":
            return _normalized(pixels, layer, tensors)
        if layer.kind == "BatchNormalization":
            factor, offset = _batch_norm(layer, tensors)
            return pixels * factor + offset
        if layer.kind == "Lambda" and _application(config) in ("", *MINUS_ONE_TO_ONE):
            return pixels / 127.5 - 1
        if operation is np.negative:
            return -pixels
        if operation and len(layer.operands) == 2:
            first, second = (pixels if x is TENSOR else _constant(x) for x in layer.operands)
            if operation is not np.divide or first is pixels:  # 1 / x is not linear
                return operation(first, second)
    except (KeyError, TypeError, ValueError):
        pass  # a constant or variable that is missing, or not one per channel
    raise _not_understood(layer)


def _constant(value: Any) -> np.ndarray:
    """Returns a constant as one number, or one per channel. Raises ValueError for anything else."""
    if isinstance(value, dict):  # a tensor or an array, as Keras 3 writes it
        value = value["config"]["value"]
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or (array.ndim and array.shape[-1] != array.size):
        raise ValueError(f"neither one number nor one per channel: {array.shape}")
    return array.reshape(-1)


def _normalized(pixels: np.ndarray, layer: Layer, tensors: Tensors) -> np.ndarray:
    """Returns what a Normalization makes of pixels; removes its variables from `tensors`."""
    stored = [tensors.pop(f"{layer.name}/{x}", None) for x in ("mean", "variance", "count")]
    given = [layer.config.get("mean"), layer.config.get("variance")]
    mean, variance = map(_constant, stored[:2] if None in given else given)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras' smallest deviation
    if layer.config.get("invert"):
        return pixels * deviation + mean
    return (pixels - mean) / deviation


def _application(config: Mapping[str, Any]) -> str | None:
    """Returns the module of keras.applications whose preprocess_input a Lambda calls.

    It is empty if the file tells only the name, and None for another function.
    """
    function = config["function"]
    if not isinstance(function, dict):
        function = {"config": function, "module": config.get("module")}
    if function["config"] != "preprocess_input" or config.get("arguments"):
        return None
    parent, _, name = str(function.get("module")).rpartition(".")
    return name if parent.endswith("applications") else ""


def _is_identity(layer: Layer) -> bool:
    """Returns whether a layer does nothing in evaluation, whatever its settings are."""
    is_random = layer.kind.startswith("Random") and layer.kind != "RandomCrop"
    return is_random or layer.kind in IDENTITY_LAYERS


def _does_nothing(layer: Layer) -> bool:
    """Returns whether a layer with these settings does nothing, or what the network does itself."""
    config = layer.config
    if layer.kind.lower() == "cast":
        return "float" in str(config.get("dtype", "float32"))
    if layer.kind == "Activation":
        return _activation_of(layer) == "linear"
    # Older versions pad before the stem, as the padding `same` does.
    return layer.kind == "ZeroPadding2D" and layer.name in ("Conv1_pad", "conv1_pad")


def _resizing(layer: Layer, size: Size | None) -> tuple[Size, str]:
    """Returns the size that a layer resizes to, and how."""
    config = layer.config
    method = METHODS.get(config["interpolation"])
    if layer.kind == "UpSampling2D":
        if size is None or method is None:
            raise _not_understood(layer)
        up, across = config["size"]
        return (up * size[0], across * size[1]), method
    if config.get("antialias") and method == "tensorflow":
        method = "pillow"
    if method is None or config.get("crop_to_aspect_ratio") or config.get("pad_to_aspect_ratio"):
        raise _not_understood(layer)
    return (config["height"], config["width"]), method


def _fixed_size(layer: Layer) -> Size | None:
    """Returns the (height, width) that a layer's settings demand of its input, if they do."""
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
    if not shape or len(shape) != 4 or not (shape[1] and shape[2]):
        return None
    return int(shape[1]), int(shape[2])


def _read_head(
    layers: Sequence[Layer], tensors: Tensors, size: Size | None
) -> tuple[list[Dense], str]:
    """Returns the dense layers after the network, and the output as in `Usage`.

    A batch norm is a dense layer too. Without an activation between them, two layers become one.
    """
    whole = (math.ceil(size[0] / 32), math.ceil(size[1] / 32)) if size else None
    pooled = whole == (1, 1)
    head: list[Dense] = []
    for layer in layers:
        kind, config = layer.kind, layer.config
        is_linear = bool(head) and head[-1].activation == "linear"
        if _is_identity(layer) or (pooled and _keeps_features(layer, tensors, head)):
            continue
        if kind == "GlobalAveragePooling2D" or (
            kind == "AveragePooling2D" and whole and tuple(config["pool_size"]) == whole
        ):
            pooled = True
        elif pooled and (dense := _dense(layer, tensors)):
            if is_linear:
                _, kernel, bias, _ = head.pop()
                bias = bias @ dense.kernel + dense.bias
                dense = dense._replace(kernel=kernel @ dense.kernel, bias=bias)
            head.append(dense)
        elif is_linear and (name := _activation_of(layer)):
            head[-1] = head[-1]._replace(activation=name)
        else:
            unpooled = "" if pooled else " on the map, which is not averaged as a whole"
            raise UserError(
                f"{layer} is not supported{unpooled}: a head may have GlobalAveragePooling2D, "
                "Dropout, BatchNormalization and Dense; save the backbone alone"
            )
    if not head:
        return [], "softmax"
    if not any(layer.kind in ("Dense", "Conv2D") for layer in layers):
        raise UserError("a head without a dense layer is not supported")
    for dense in head[:-1]:
        if dense.activation not in ACTIVATIONS:
            raise UserError(f"activation {dense.activation!r} of {dense.name!r} is not supported")
    if (last := head[-1].activation) not in OUTPUTS:
        raise UserError(f"the last activation must give probabilities, not {last}")
    head[-1] = head[-1]._replace(activation="linear")
    return [
        x._replace(kernel=x.kernel.astype(np.float32), bias=x.bias.astype(np.float32)) for x in head
    ], OUTPUTS[last]


def _keeps_features(layer: Layer, tensors: Tensors, dense: Sequence[Dense]) -> bool:
    """Returns whether a layer changes only the shape of pooled features, or nothing at all."""
    if layer.kind == "Reshape":
        last_maps = (tensors.get(f"{name}/beta") for _, name in ENDS.values())
        biases = [x.bias for x in dense] or [x for x in last_maps if x is not None]
        *others, last = layer.config["target_shape"]
        return all(side in (1, -1) for side in others) and last in (biases[-1].size, -1)
    pools = ("Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D")
    return layer.kind in pools or _activation_of(layer) == "linear"


def _dense(layer: Layer, tensors: Tensors) -> Dense | None:
    """Returns a layer of pooled features, if it is linear; removes its variables from `tensors`."""
    config = layer.config
    if layer.kind == "BatchNormalization":
        factor, offset = _batch_norm(layer, tensors)
        return Dense(layer.name, np.diag(factor), offset, "linear")
    is_dense = layer.kind == "Dense" or (
        layer.kind == "Conv2D"
        and tuple(config["kernel_size"]) == (1, 1)
        and config.get("groups", 1) == 1
    )
    if not is_dense:
        return None
    kernel = _pop(layer, "kernel", tensors)
    kernel = kernel.reshape(-1, kernel.shape[-1])
    bias = np.zeros(kernel.shape[-1], np.float32)
    if config.get("use_bias", True):
        bias = _pop(layer, "bias", tensors)
    return Dense(layer.name, kernel, bias, _activation(config["activation"]))


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
    return {None: "relu", 6: "relu6"}.get(config.get("max_value"), "relu with another limit")
