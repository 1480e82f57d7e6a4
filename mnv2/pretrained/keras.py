"""Reads and writes MobileNet and MobileNetV2 in the files of keras.applications.

`.h5` files name every layer. `.weights.h5` and `.keras` files (a zip with a `.weights.h5` inside)
number the layers of each class instead, in the order of the network. A layers model of
TensorFlow.js is read as the `.h5` file that it was converted from.
"""

import dataclasses
import io
import json
import math
import re
import zipfile
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jax.typing import ArrayLike

from mnv2.models import make_divisible
from mnv2.models.mobilenet_v2 import CHANNELS
from mnv2.pretrained import keras_graph, keras_model
from mnv2.pretrained.infer import FileContents, Usage
from mnv2.pretrained.keras_model import KERAS_VIEW, Dense
from mnv2.pretrained.names import NUM_BLOCKS, tensor_names, translate
from mnv2.pretrained.preprocessing import size_to_assume
from mnv2.pretrained.slim import SLIM, tensorflow_layout
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note

FIELDS = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.99},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.999},
}
SUFFIXES = ("/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance")
TEMPLATES = {
    "mobilenet_v1": {
        "stem": "conv1 conv1_bn",
        "depthwise": "conv_dw_{next} conv_dw_{next}_bn",
        "pointwise": "conv_pw_{next} conv_pw_{next}_bn",
    },
    "mobilenet_v2": {
        "stem": "Conv1 bn_Conv1",
        "block_0": "expanded_conv_{part} expanded_conv_{part}_BN",
        "block": "block_{block}_{part} block_{block}_{part}_BN",
        "last_conv": "Conv_1 Conv_1_bn",
    },
}

# The layers that classify; early versions of V2 have `Logits` instead.
TOPS = {"mobilenet_v1": "conv_preds", "mobilenet_v2": "predictions"}
IMAGENET_CLASSES = (1000, 1001)  # with another number, such a layer has a user's own classes

# The variables of each class of numbered layers, in the order of their numbers.
NUMBERED_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
    "normalization": ("mean", "variance", "count"),
}


def read(path: Path, need_head: bool = True) -> FileContents:
    """Reads a file. Raises UserError if it holds another network, others if it is damaged.

    Unless `need_head`, a head that is not understood is left out, after a note.
    """
    graph, tensors = (_read_tfjs if path.suffix == ".json" else _read_h5)(path)
    network = "mobilenet_v1" if "conv_pw_1/kernel" in tensors else "mobilenet_v2"
    names = tensor_names(network, TEMPLATES[network], SUFFIXES)
    if graph:
        model = keras_model.read(graph, network, tensors, names.values(), path, need_head)
    elif {"conv1/kernel", "Conv1/kernel"} & tensors.keys():
        head = _pop_head(tensors, names.values(), path, need_head)
        model = keras_model.Model(tensors, {}, None, head, "softmax")
    else:
        raise UserError("it holds no MobileNet or MobileNetV2 of keras.applications")
    is_published = (
        len(model.head) == 1
        and model.head[0].name in (*TOPS.values(), "Logits")
        and model.head[0].bias.size in IMAGENET_CLASSES
    )
    own_classes = bool(model.head) and not is_published  # whose pictures are used without a crop
    if own_classes and not graph:
        note(f"{path} holds only weights: assumed that its classes exclude each other (softmax)")
    preprocess = dataclasses.replace(SLIM, **((KERAS_VIEW if own_classes else {}) | model.changes))
    usage = Usage(preprocess, model.size or size_to_assume(path), None, model.output)
    arrays = translate(model.tensors, names, tensorflow_layout)
    several = len(model.head) > 1
    for i, layer in enumerate(model.head):
        module = f"params/dense_{i}" if several else "params/classifier"
        arrays |= {f"{module}/kernel": layer.kernel, f"{module}/bias": layer.bias}
        names |= {f"{module}/{x}": f"{layer.name}/{x}" for x in ("kernel", "bias")}
    layers = tuple((x.bias.size, x.activation) for x in model.head) if several else ()
    return FileContents(network, arrays, names, FIELDS[network], usage, layers, own_classes)


def write(path: Path, arrays: Mapping[str, ArrayLike], network: str) -> None:
    """Writes arrays by path as an `.h5` file of weights, as keras.applications distributes them.

    `model.load_weights(path)` reads it; for 1000 classes, `MobileNetV2(weights=path)` does too.
    """
    templates = TEMPLATES[network]
    if "params/classifier/kernel" in arrays:
        templates = templates | {"classifier": TOPS[network]}
    names = tensor_names(network, templates, SUFFIXES)
    layers: dict[str, list[str]] = defaultdict(list)
    with h5py.File(path, "w") as file:
        for ours, name in names.items():
            layer, _, variable = name.partition("/")
            array = np.asarray(tensorflow_layout(ours, np.asarray(arrays[ours])))
            if layer == "conv_preds" and variable == "kernel":
                array = array[None, None]
            layers[layer].append(f"{layer}/{variable}:0")
            file[f"{layer}/{layer}/{variable}:0"] = array
        for layer, weights in layers.items():
            file[layer].attrs["weight_names"] = [name.encode() for name in weights]
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.15.0"  # a version that writes this layout


def rounds_alike(width: float, is_v1: bool) -> bool:
    """Returns whether keras.applications gives a width the same channels as this package.

    It rounds their products down before anything else, and V1 may have fewer than 8.
    """
    if is_v1:
        return int(32 * width) >= 8
    return all(make_divisible(int(x * width)) == make_divisible(x * width) for x in CHANNELS)


def _read_h5(path: Path) -> tuple[keras_graph.Graph | None, dict[str, np.ndarray]]:
    """Reads the model, None in a file of weights alone, and the tensors by LAYER/VARIABLE."""
    source: Path | io.BytesIO = path
    text = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            source = io.BytesIO(archive.read("model.weights.h5"))
            text = archive.read("config.json")
    with h5py.File(source) as file:
        text = text or file.attrs.get("model_config")
        graph = keras_graph.read(text) if text else None
        return graph, _numbered_tensors(file, graph, path) or _named_tensors(file)


def _named_tensors(file: h5py.File) -> dict[str, np.ndarray]:
    """Reads the tensors of an `.h5` file by LAYER/VARIABLE, at any depth of nested models."""
    found: dict[str, np.ndarray] = {}
    for name, dataset in _datasets(file.get("model_weights", file)):
        layer, variable = name.split("/")[-2:]
        if not name.startswith("optimizer_weights") and variable != "seed_generator_state":
            _add(found, layer, variable, dataset)
    return found


def _add(tensors: dict[str, np.ndarray], layer: str, variable: str, dataset: Any) -> None:
    """Adds a tensor. Raises UserError if two layers have the same name."""
    name = f"{layer}/{variable.removesuffix(':0').replace('depthwise_kernel', 'kernel')}"
    if name in tensors:
        raise UserError(f"it holds two layers of the name {layer!r}: rename one of them")
    tensors[name] = np.asarray(dataset[()])


def _numbered_tensors(
    file: h5py.File, graph: keras_graph.Graph | None, path: Path
) -> dict[str, np.ndarray]:
    """Reads tensors of a `.weights.h5` file by LAYER/VARIABLE; none from another kind of file."""
    # Their names are .../layers/CLASS_N/vars/I, with N counting a model's layers of one class.
    folders: dict[str, dict[int, h5py.Dataset]] = defaultdict(dict)
    for name, dataset in _datasets(file):
        match = re.fullmatch(r"(.*?layers/[^/]+)/vars/(\d+)", name)
        if match and not name.startswith("optimizer"):
            folders[match[1]][int(match[2])] = dataset
    if graph:
        layers = {layer.folder: (layer.name, layer.config) for layer in graph.layers}
    else:
        layers = {folder: (name, {}) for folder, name in _layers_without_model(folders).items()}
    found: dict[str, np.ndarray] = {}
    for folder in filter(layers.__contains__, folders):
        layer, config = layers[folder]
        variables = [
            variable
            for variable in NUMBERED_VARIABLES.get(_kind(folder), ())
            if config.get({"gamma": "scale", "beta": "center"}.get(variable, ""), True)
        ]
        for index, dataset in folders[folder].items():
            # An unexpected variable keeps its number, which `check_tensors` then rejects.
            variable = variables[index] if index < len(variables) else f"vars/{index}"
            _add(found, layer, variable, dataset)
    top = found.get("predictions/kernel")
    if not graph and top is not None and top.shape[-1] in IMAGENET_CLASSES:
        note(f"{path} does not name its layers: assumed that its classes are those of ImageNet")
    return found


def _kind(folder: str) -> str:
    """Returns the class in the name of a folder, conv2d of .../conv2d_3."""
    return re.sub(r".*/|_\d+$", "", folder)


def _layers_without_model(folders: Collection[str]) -> dict[str, str]:
    """Returns the names of the layers that folders of a `.weights.h5` file belong to.

    The number of depthwise convolutions tells the network, and its order the layers. An unexpected
    layer keeps its number, which `check_tensors` then rejects.
    """
    layers = {x: x.rpartition("/")[2] for x in folders if _kind(x) in NUMBERED_VARIABLES}
    depthwise = [folder for folder in folders if _kind(folder) == "depthwise_conv2d"]
    network = {count: name for name, count in NUM_BLOCKS.items()}.get(len(depthwise))
    if network is None:
        return layers
    kinds = {
        "/bn/scale": "batch_normalization",
        "/depthwise/kernel": "depthwise_conv2d",
        "/classifier/kernel": "conv2d" if network == "mobilenet_v1" else "dense",
        "/kernel": "conv2d",
    }
    used = Counter[str]()
    templates = TEMPLATES[network] | {"classifier": TOPS[network]}
    for path, name in tensor_names(network, templates, SUFFIXES).items():
        if kind := next((kinds[suffix] for suffix in kinds if path.endswith(suffix)), None):
            folder = f"{depthwise[0].rpartition('/')[0]}/{keras_graph.numbered(kind, used)}"
            if folder in layers:
                layers[folder] = name.partition("/")[0]
    return layers


def _pop_head(
    tensors: dict[str, np.ndarray], known: Collection[str], path: Path, need_head: bool
) -> list[Dense]:
    """Removes the dense layer from the tensors of a file without a model, and returns it."""
    head = []
    for name, kernel in list(tensors.items()):
        layer, _, variable = name.rpartition("/")
        is_dense = kernel.ndim == 2 or layer == "conv_preds"  # V1's is a 1x1 convolution
        if variable == "kernel" and is_dense and name not in known:
            kernel = tensors.pop(name).reshape(-1, kernel.shape[-1])
            bias = tensors.pop(f"{layer}/bias", np.zeros(kernel.shape[-1], np.float32))
            head.append(Dense(layer, kernel, bias, "linear"))
    if len(head) < 2:
        return head
    layers = ", ".join(layer.name for layer in head)
    if need_head:
        raise UserError(f"it holds the dense layers {layers} but no model: save the whole model")
    note(f"{path}: its dense layers {layers} are left out")
    return []


def _datasets(file: h5py.File | h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """Returns the name and the content of every HDF5 data set in `file`."""
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    return [(name, item) for name, item in found if isinstance(item, h5py.Dataset)]


def _read_tfjs(path: Path) -> tuple[keras_graph.Graph, dict[str, np.ndarray]]:
    """Reads the model in TensorFlow.js' `model.json`, and the tensors in files next to it."""
    model = json.loads(path.read_text(encoding="utf-8"))
    topology = model["modelTopology"]
    topology = topology.get("model_config", topology)
    if "class_name" not in topology:
        raise UserError("it is no layers model of TensorFlow.js: convert the Keras model")
    tensors: dict[str, np.ndarray] = {}
    for group in model["weightsManifest"]:
        files = [path.parent / Path(name).name for name in group["paths"]]
        content = b"".join(file.read_bytes() for file in files)
        start = 0
        for weight in group["weights"]:
            quantization = weight.get("quantization", {})
            dtype = np.dtype(quantization.get("dtype", weight["dtype"])).newbyteorder("<")
            stored = np.frombuffer(content, dtype, math.prod(weight["shape"]), start)
            start += stored.nbytes
            array = stored.reshape(weight["shape"]).astype(np.float32)
            if "scale" in quantization:
                scale, low = (np.float32(quantization[name]) for name in ("scale", "min"))
                array = array * scale + low
            layer, variable = weight["name"].split("/")[-2:]
            _add(tensors, layer, variable, array)
    return keras_graph.read(json.dumps(topology)), tensors
