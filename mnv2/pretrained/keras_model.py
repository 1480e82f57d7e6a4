"""Finds the network in a saved Keras model, and reads what is before and after it.

Before it: the size and scaling of pixels. After it: global average pooling and dense layers. The
layers form a chain, each of which is understood, known to do nothing in evaluation, or named in an
error.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2.models.mobilenet_v1 import IMAGENET_STRIDES as V1_STRIDES
from mnv2.models.mobilenet_v2 import IMAGENET_STRIDES as V2_STRIDES
from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.preprocess.host import named_view
from mnv2.pretrained.infer import DenseWeights, Usage
from mnv2.pretrained.keras_graph import TENSOR, Graph, Layer
from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.names import NUM_BLOCKS
from mnv2.pretrained.preprocessing import size_to_assume
from mnv2.pretrained.slim import SLIM
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

# The classes of the layers of MobileNet and MobileNetV2 up to their pooled features.
BACKBONE_LAYERS = (
    *("Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "ZeroPadding2D", "Add"),
    "Activation",
)
# The names that the first and the last layer with variables have in keras.applications.
ENDS = {"mobilenet_v1": ("conv1", "conv_pw_13_bn"), "mobilenet_v2": ("Conv1", "Conv_1_bn")}
RELUS = {"mobilenet_v1": 27, "mobilenet_v2": 35}
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
# The classes of layers that do nothing in evaluation.
IDENTITY_LAYERS = frozenset(
    (
        *("InputLayer", "Identity", "Dropout", "SpatialDropout2D", "ActivityRegularization"),
        *("GaussianDropout", "GaussianNoise", "AlphaDropout", "AugMix", "RandAugment"),
        *("RandomBrightness", "RandomColorDegeneration", "RandomColorJitter", "RandomContrast"),
        *("RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur"),
        *("RandomGrayscale", "RandomHeight", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness"),
        *("RandomShear", "RandomTranslation", "RandomWidth", "RandomZoom"),
    )
)
# The interpolations of Resizing and UpSampling2D -> the method of Preprocessing.
METHODS = {"bilinear": "tensorflow", "nearest": "nearest"}
# The modules of keras.applications whose preprocess_input maps [0, 255] to [-1, 1], as MobileNet's.
MINUS_ONE_TO_ONE = (
    *("mobilenet", "mobilenet_v2", "inception_v3", "inception_resnet_v2", "nasnet", "resnet_v2"),
    "xception",
)

Affine = tuple[np.ndarray, np.ndarray]  # scale and offset, of one or all channels
ZERO, ONE = np.zeros(1), np.ones(1)
# What operations with a constant multiply by and add, if it is the second operand or the first.
AFTER: Mapping[str, Callable[[np.ndarray], Affine]] = {
    "add": lambda constant: (ONE, constant),
    "divide": lambda constant: (1 / constant, ZERO),
    "multiply": lambda constant: (constant, ZERO),
    "subtract": lambda constant: (ONE, -constant),
}
BEFORE = {
    "add": AFTER["add"],
    "multiply": AFTER["multiply"],
    "subtract": lambda constant: (-ONE, constant),
}
# The names that versions of Keras and TensorFlow give to operations.
OPERATIONS = {
    "addv2": "add", "mul": "multiply", "sub": "subtract",
    **dict.fromkeys(("truedivide", "truediv", "realdiv"), "divide"),
}  # fmt: skip


def read(
    graph: Graph,
    tensors: Mapping[str, np.ndarray],
    names: Collection[str],
    path: Path,
    need_head: bool = True,
) -> tuple[dict[str, np.ndarray], Usage, list[DenseWeights]]:
    """Reads what the model in a file does around its MobileNet.

    `tensors` are those of the file by LAYER/VARIABLE, and `names` those of the network.

    Returns the tensors of the network itself; how it is used; and the dense layers of a user's
    head, in order: the last activation is `linear`. There are none without a head, and for the
    classes of ImageNet.

    Raises UserError if the model contains no MobileNet, or if anything around it is not understood.
    Unless `need_head`, a head that is not understood is left out, after a note.
    """
    source = str(path)
    network, before, stem = _find_network(graph, source)
    own = dict(tensors)
    changes, size = read_pixels(before, stem, own, source)
    rest, output = dict(own), "softmax"
    head: list[DenseWeights] = []
    view: dict[str, Any] = {}
    try:
        after = walk_back(graph.output, ENDS[network][1], source)[2:]  # a ReLU6 follows
        around = {id(layer) for layer in (*before, *after)}
        backbone = [layer for layer in graph.layers if id(layer) not in around]
        _check_backbone(backbone, network, source)
        if (count := sum(_activation_of(x) == "relu6" for x in backbone)) != RELUS[network]:
            raise UserError(
                f"{source} is not the {network} of keras.applications: it has {count} ReLU6, not "
                f"{RELUS[network]}"
            )
        head, output, layers = _read_head(after, rest, size, source)
        if len(head) == 1 and layers[0] in TOP_LAYERS and head[0].bias.size in IMAGENET_CLASSES:
            head, rest = [], own
        elif head:  # a user's own pictures are used without a crop
            view = KERAS_VIEW
    except UserError as error:
        if need_head:
            raise
        layers = [name.partition("/")[0] for name in names]
        _check_backbone([layer for layer in graph.layers if layer.name in layers], network, source)
        note(f"{error}; not needed: only the network before its head is used")
        rest, view = {name: x for name, x in own.items() if name in names}, KERAS_VIEW
    preprocess = dataclasses.replace(SLIM, **{**view, **changes})
    return rest, Usage(preprocess, size or size_to_assume(path), None, output), head


def _find_network(graph: Graph, source: str) -> tuple[str, list[Layer], Layer]:
    """Returns the name of the network, the layers before its first convolution, and that layer."""
    num_depthwise = sum(layer.kind == "DepthwiseConv2D" for layer in graph.layers)
    network = {count: name for name, count in NUM_BLOCKS.items()}.get(num_depthwise)
    layers = {layer.name: layer for layer in graph.layers}
    if network is None or not layers.keys() >= set(ENDS[network]):
        raise UserError(
            f"{source} holds no MobileNet or MobileNetV2 of keras.applications: it has "
            f"{num_depthwise} depthwise convolutions, not 13 from the layer conv1 to conv_pw_13_bn "
            "or 17 from Conv1 to Conv_1_bn"
        )
    stem = layers[ENDS[network][0]]
    return network, walk_back(stem, None, source)[:-1], stem


def walk_back(layer: Layer, name: str | None, source: str) -> list[Layer]:
    """Returns the chain from the layer called `name`, or the input of the model, to `layer`."""
    chain = [layer]
    while chain[-1].name != name and (before := chain[-1].only_input(source)):
        chain.append(before)
    if name is not None and chain[-1].name != name:
        raise UserError(f"{source}: its output does not come from the layer {name}")
    return chain[::-1]


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


def read_pixels(
    layers: Sequence[Layer], stem: Layer, tensors: dict[str, np.ndarray], source: str
) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """Combines the layers from the input of a model to `stem`, the first one of the network.

    Returns the fields of Preprocessing that they change, and the (height, width) at the network, if
    the file tells it. The variables of these layers are removed from `tensors`.

    Raises UserError if one is not understood.
    """
    scale, offset = ONE, ZERO
    changes: dict[str, Any] = {}
    size = None
    for layer in layers:
        size = _fixed_size(layer) or size
        if layer.kind in IDENTITY_LAYERS or _does_nothing(layer):
            continue
        if layer.kind in ("Resizing", "UpSampling2D") and "view" not in changes:
            first = size
            size, method = _resizing(layer, first, source)
            changes["view"] = named_view(method, first=first)
            continue
        factor, term = _affine(layer, tensors, source)
        scale, offset = scale * factor, offset * factor + term
        changes.setdefault("assumed", False)
        if layer.kind == "Lambda" and not _application(layer.config):
            note(
                f"{source}: took {layer} for MobileNet's preprocess_input, since the file tells "
                "only its name"
            )
            changes["assumed"] = True
    if not (np.isfinite(scale) & np.isfinite(offset)).all() or not scale.all():
        raise UserError(
            f"{source}: the layers before the network multiply pixels by {scale.tolist()} and add "
            f"{offset.tolist()}: no picture would be left"
        )
    if "assumed" in changes:
        scale, offset = np.broadcast_arrays(scale, offset)
        std = 1 / (255 * scale)
        changes |= {"mean": tuple((-offset * std).tolist()), "std": tuple(std.tolist())}
    # The size of the stem's own model, for a model that takes pictures of any size.
    return changes, size or _fixed_size(stem)


def _batch_norm(layer: Layer, tensors: dict[str, np.ndarray]) -> Affine:
    """Returns a BatchNormalization in evaluation; removes its variables from `tensors`."""
    config = layer.config
    mean, variance = (
        tensors.pop(f"{layer.name}/{name}").astype(np.float64)
        for name in ("moving_mean", "moving_variance")
    )
    gamma = tensors.pop(f"{layer.name}/gamma") if config.get("scale", True) else ONE
    beta = tensors.pop(f"{layer.name}/beta") if config.get("center", True) else ZERO
    factor = gamma / np.sqrt(variance + config["epsilon"])
    return factor, beta - mean * factor


def _not_understood(layer: Layer, source: str) -> UserError:
    return UserError(
        f"{source}: {layer} before the network is not understood: save the model from the layer "
        "after it on, and give its scaling with --mean and --std"
    )


def _affine(layer: Layer, tensors: dict[str, np.ndarray], source: str) -> Affine:
    """Returns what a layer multiplies by and adds."""
    config, kind = layer.config, layer.kind.lower()
    operation = OPERATIONS.get(kind, kind)
    try:
        if layer.kind == "Rescaling":
            return _constant(config["scale"]), _constant(config["offset"])
        if layer.kind == "Normalization":
            return _normalization(layer, tensors)
        if layer.kind == "BatchNormalization":
            return _batch_norm(layer, tensors)
        if layer.kind == "Lambda" and _is_preprocess_input(config):
            return ONE / 127.5, -ONE
        if kind in ("negative", "neg"):
            return -ONE, ZERO
        if operation in AFTER and len(layer.operands) == 2:
            first, second = layer.operands
            if first is TENSOR:
                return AFTER[operation](_constant(second))
            return BEFORE[operation](_constant(first))
    except (KeyError, TypeError, ValueError):
        pass  # a constant or variable that is missing, or not one per channel
    raise _not_understood(layer, source)


def _constant(value: Any) -> np.ndarray:
    """Returns a constant as one number, or one per channel. Raises ValueError for anything else."""
    if isinstance(value, dict):  # a tensor or an array, as Keras 3 writes it
        value = value["config"]["value"]
    array = np.asarray(value, np.float64)
    if array.size not in (1, 3) or (array.ndim and array.shape[-1] != array.size):
        raise ValueError(f"neither one number nor one per channel: {array.shape}")
    return array.reshape(-1)


def _normalization(layer: Layer, tensors: dict[str, np.ndarray]) -> Affine:
    mean, variance = layer.config.get("mean"), layer.config.get("variance")
    stored = {key: tensors.pop(f"{layer.name}/{key}", None) for key in ("mean", "variance")}
    tensors.pop(f"{layer.name}/count", None)
    if mean is None or variance is None:
        mean, variance = stored["mean"], stored["variance"]
    mean, variance = _constant(mean), _constant(variance)
    deviation = np.maximum(np.sqrt(variance), 1e-7)  # Keras' smallest deviation
    if layer.config.get("invert"):
        return deviation, mean
    return 1 / deviation, -mean / deviation


def _is_preprocess_input(config: Mapping[str, Any]) -> bool:
    """Tells whether a Lambda is MobileNet's preprocess_input, as far as the file tells."""
    function = config["function"]
    name = function["config"] if isinstance(function, dict) else function
    is_known = _application(config) in ("", *MINUS_ONE_TO_ONE)
    return name == "preprocess_input" and not config.get("arguments") and is_known


def _application(config: Mapping[str, Any]) -> str:
    """Returns the module of keras.applications that a Lambda's function is from; empty for none."""
    function = config["function"]
    module = function.get("module") if isinstance(function, dict) else config.get("module")
    parent, _, name = str(module).rpartition(".")
    return name if parent.endswith("applications") else ""


def _does_nothing(layer: Layer) -> bool:
    """Returns whether a layer with these settings does nothing, or what the network does itself."""
    config = layer.config
    if layer.kind.lower() == "cast":
        return "float" in str(config.get("dtype", "float32"))
    if layer.kind == "Activation":
        return config["activation"] in (None, "linear")
    # Older versions pad before the stem, as the padding `same` does.
    return layer.kind == "ZeroPadding2D" and layer.name in ("Conv1_pad", "conv1_pad")


def _resizing(
    layer: Layer, size: tuple[int, int] | None, source: str
) -> tuple[tuple[int, int], str]:
    """Returns the size that a layer resizes to, and how."""
    config = layer.config
    method = METHODS.get(config["interpolation"])
    if layer.kind == "UpSampling2D":
        if size is None or method is None:
            raise _not_understood(layer, source)
        up, across = config["size"]
        return (up * size[0], across * size[1]), method
    if config.get("antialias") and method == "tensorflow":
        method = "pillow"
    if method is None or config.get("crop_to_aspect_ratio") or config.get("pad_to_aspect_ratio"):
        raise _not_understood(layer, source)
    return (config["height"], config["width"]), method


def _fixed_size(layer: Layer) -> tuple[int, int] | None:
    """Returns the (height, width) that a layer's settings demand of its input, if they do."""
    shape = layer.config.get("batch_shape") or layer.config.get("batch_input_shape")
    if not shape or len(shape) != 4 or not (shape[1] and shape[2]):
        return None
    return int(shape[1]), int(shape[2])


def _read_head(
    layers: Sequence[Layer],
    tensors: dict[str, np.ndarray],
    size: tuple[int, int] | None,
    source: str,
) -> tuple[list[DenseWeights], str, list[str]]:
    """Returns the dense layers after the network, the output as in `Usage`, and their names.

    Batch norm is folded into the dense layer before or after it.
    """
    whole = (math.ceil(size[0] / 32), math.ceil(size[1] / 32)) if size else None
    pooled = whole == (1, 1)
    dense: list[DenseWeights] = []
    names: list[str] = []
    pending: Affine | None = None  # batch norm before the next dense layer
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
                new = new._replace(
                    kernel=np.reshape(scale, (-1, 1)) * new.kernel,
                    bias=new.bias + np.broadcast_to(offset, len(new.kernel)) @ new.kernel,
                )
                pending = None
            dense.append(new)
            names.append(layer.name)
        elif pooled and kind == "BatchNormalization" and pending is None:
            try:
                scale, offset = _batch_norm(layer, tensors)
            except KeyError as error:
                raise UserError(f"{source} lacks {error.args[0]}") from None
            if last and last.activation == "linear":
                dense[-1] = last._replace(
                    kernel=last.kernel * scale, bias=last.bias * scale + offset
                )
            else:
                pending = scale, offset
        elif last and last.activation == "linear" and (name := _activation_of(layer)):
            dense[-1] = last._replace(activation=name)
        else:
            raise _unsupported(layer, whole, pooled, source)
    if pending is not None:
        raise UserError(f"{source}: a head that ends in batch norm is not supported")
    return (*_head_of(dense, names, source), names) if dense else ([], "softmax", [])


def _head_of(
    dense: Sequence[DenseWeights], names: Sequence[str], source: str
) -> tuple[list[DenseWeights], str]:
    """Returns a head and its output. Raises UserError for activations that it cannot have."""
    for name, layer in zip(names[:-1], dense[:-1], strict=True):
        if layer.activation not in ACTIVATIONS:
            raise UserError(
                f"{source}: activation {layer.activation!r} of layer {name!r} is not supported"
            )
    last = dense[-1].activation
    if last not in OUTPUTS:
        raise UserError(f"{source}: the last activation must give probabilities, not {last}")
    head = [
        DenseWeights(x.kernel.astype(np.float32), x.bias.astype(np.float32), x.activation)
        for x in (*dense[:-1], dense[-1]._replace(activation="linear"))
    ]
    return head, OUTPUTS[last]


def _keeps_features(
    layer: Layer, tensors: Mapping[str, np.ndarray], dense: Sequence[DenseWeights]
) -> bool:
    """Returns whether a layer changes only the shape of pooled features, or nothing at all."""
    if layer.kind in ("Flatten", "GlobalAveragePooling2D", "GlobalMaxPooling2D"):
        return True
    if layer.kind == "Reshape":
        last_maps = (tensors.get(f"{name}/beta") for _, name in ENDS.values())
        biases = [layer.bias for layer in dense] or [x for x in last_maps if x is not None]
        *others, last = layer.config["target_shape"]
        return all(side in (1, -1) for side in others) and last in (biases[-1].size, -1)
    return layer.kind == "Activation" and _activation(layer.config["activation"]) == "linear"


def _is_dense(config: Mapping[str, Any]) -> bool:
    """Returns whether a convolution of a 1 x 1 map is a dense layer."""
    return tuple(config["kernel_size"]) == (1, 1) and config.get("groups", 1) == 1


def _dense(layer: Layer, tensors: dict[str, np.ndarray], source: str) -> DenseWeights:
    kernel = tensors.pop(f"{layer.name}/kernel", None)
    if kernel is None:
        raise UserError(f"{source} lacks {layer.name}/kernel")
    kernel = kernel.reshape(-1, kernel.shape[-1])
    bias = tensors.pop(f"{layer.name}/bias", None)
    if bias is None:
        if layer.config.get("use_bias", True):
            raise UserError(f"{source} lacks {layer.name}/bias")
        bias = np.zeros(kernel.shape[-1], np.float32)
    return DenseWeights(kernel, bias, _activation(layer.config["activation"]))


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
