"""Reads and writes MobileNet and MobileNetV2 in the files of keras.applications.

A user's own model with such a network and a dense head is read too. `.h5` files give the name of
every layer. `.weights.h5` and `.keras` files (a zip with a `.weights.h5` file inside) number the
layers of each class instead, in the order of the model, which is the order of the network. A layers
model of TensorFlow.js is read as the `.h5` file that it was converted from.
"""

import contextlib
import dataclasses
import io
import json
import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jax.typing import ArrayLike

from mnv2.models import make_divisible
from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import CHANNELS
from mnv2.pretrained import keras_graph, keras_model
from mnv2.pretrained.infer import DenseWeights, FileContents, Usage
from mnv2.pretrained.keras_model import IMAGENET_CLASSES, KERAS_VIEW, TOP_LAYERS
from mnv2.pretrained.names import (
    NUM_BLOCKS,
    STAGES,
    layer_names,
    module_paths,
    tensor_names,
    translate,
)
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
    graph: keras_graph.Graph | None
    if path.suffix == ".json":
        text, tensors = _read_tfjs(path)
        graph = keras_graph.read(text, str(path))
    else:
        with _open(path) as (file, description):
            graph = keras_graph.read(description, str(path)) if description else None
            tensors = _numbered_tensors(file, graph, path) or _named_tensors(file, path)
    return _contents(path, graph, tensors, need_head)


def _contents(
    path: Path, graph: keras_graph.Graph | None, tensors: dict[str, np.ndarray], need_head: bool
) -> FileContents:
    """Finds the network among the tensors of a file, and what its model does around it."""
    top = next((name for name in TOP_LAYERS if f"{name}/kernel" in tensors), None)
    network = "mobilenet_v1" if "conv_pw_1/kernel" in tensors else "mobilenet_v2"
    head: Sequence[DenseWeights] = []
    if graph:
        own = _tensor_names(network, None).values()
        tensors, usage, head = keras_model.read(graph, tensors, own, path, need_head)
    if not {"conv1/kernel", "Conv1/kernel"} & tensors.keys():
        raise UserError(f"{path} holds no MobileNet or MobileNetV2 of keras.applications")
    if not graph:
        if top and tensors[f"{top}/kernel"].shape[-1] not in IMAGENET_CLASSES:
            # A user's own classes, whatever Keras calls the layer: as in a file with the model.
            kernel = tensors[f"{top}/kernel"]  # V1's classifier is a 1x1 convolution
            tensors[f"{top}/kernel"] = kernel[0, 0] if kernel.ndim == 4 else kernel
            top = None
        head = _pop_head(tensors, set(_tensor_names(network, top).values()), path, need_head)
        preprocess = dataclasses.replace(SLIM, **(KERAS_VIEW if head else {}))
        usage = Usage(preprocess, size_to_assume(path))
        if head:
            note(
                f"{path} holds only weights: assumed that its classes exclude each other "
                "(softmax), and that nothing but pooling is between the network and its dense layer"
            )
    names = _tensor_names(network, top)
    arrays = translate(tensors, names, tensorflow_layout)
    return FileContents(network, arrays, names, FIELDS[network], usage, head)


def write(path: Path, arrays: Mapping[str, ArrayLike], network: str) -> None:
    """Writes arrays by path as an `.h5` file of weights, as keras.applications distributes them.

    `model.load_weights(path)` reads it; for 1000 classes, `MobileNetV2(weights=path)` does too.
    """
    top = "conv_preds" if network == "mobilenet_v1" else "predictions"
    names = _tensor_names(network, top if "params/classifier/kernel" in arrays else None)
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


def channels(width: float, is_v1: bool) -> tuple[int, ...]:
    """Returns the output channels that keras.applications gives MobileNet or MobileNetV2.

    Those of the stem, of the blocks or of the rows, and of V2's last convolution.
    """
    if is_v1:
        return tuple(int(channels * width) for channels in (32, *V1_CHANNELS))
    rows = (make_divisible(int(channels * width)) for channels in CHANNELS)
    last = make_divisible(1280 * width) if width > 1 else 1280
    return (make_divisible(32 * width), *rows, last)


def _tensor_names(network: str, top: str | None) -> dict[str, str]:
    """Returns the names of a network's tensors; `top` is the name of its classifier, if any."""
    classifier = {"classifier": top} if top else {}
    return tensor_names(network, TEMPLATES[network] | classifier, SUFFIXES)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[h5py.File, str | None]]:
    """Opens a file, and gives the description of its model; None if it holds only weights."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            weights = io.BytesIO(archive.read("model.weights.h5"))
            text = archive.read("config.json").decode()
        with h5py.File(weights) as file:
            yield file, text
        return
    with h5py.File(path) as file:
        text = file.attrs.get("model_config")
        yield file, text.decode() if isinstance(text, bytes) else text


def _named_tensors(file: h5py.File, path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an `.h5` file by LAYER/VARIABLE, at any depth of nested models."""
    found: dict[str, np.ndarray] = {}
    for name, dataset in _datasets(file.get("model_weights", file)):
        layer, variable = name.split("/")[-2:]
        if not name.startswith("optimizer_weights") and variable != "seed_generator_state":
            _add(found, layer, variable, dataset, path)
    return found


def _add(
    tensors: dict[str, np.ndarray],
    layer: str,
    variable: str,
    dataset: h5py.Dataset | np.ndarray,
    path: Path,
) -> None:
    """Adds a tensor. Raises UserError if two layers have the same name."""
    name = f"{layer}/{variable.removesuffix(':0').replace('depthwise_kernel', 'kernel')}"
    if name in tensors:
        raise UserError(f"{path} holds two layers of the name {layer!r}: rename one of them")
    tensors[name] = np.asarray(dataset[()])


def _numbered_tensors(
    file: h5py.File, graph: keras_graph.Graph | None, path: Path
) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.weights.h5` file by LAYER/VARIABLE, except the optimiser's.

    The file names them .../layers/CLASS_N/vars/I, with N counting a model's layers of one class.
    Returns an empty dict for another kind of file.
    """
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
            for variable in NUMBERED_VARIABLES.get(_kind_and_number(folder)[0], ())
            if config.get({"gamma": "scale", "beta": "center"}.get(variable, ""), True)
        ]
        for index, dataset in folders[folder].items():
            # An unexpected variable keeps its number, which `check_tensors` then rejects.
            variable = variables[index] if index < len(variables) else f"vars/{index}"
            _add(found, layer, variable, dataset, path)
    top = found.get("predictions/kernel")
    if not graph and top is not None and top.shape[-1] in IMAGENET_CLASSES:
        note(f"{path} does not name its layers: assumed that its classes are those of ImageNet")
    return found


def _kind_and_number(folder: str) -> tuple[str, int]:
    """Splits .../conv2d_3 into conv2d and 3, and .../conv2d into conv2d and 0."""
    kind, _, number = folder.rpartition("/")[2].rpartition("_")
    return (kind, int(number)) if number.isdecimal() else (folder.rpartition("/")[2], 0)


def _layers_without_model(folders: Iterable[str]) -> dict[str, str]:
    """Returns the names of the layers that folders of a `.weights.h5` file belong to.

    The number of depthwise convolutions tells the network, and its order the layers.
    """
    names = {}
    models: dict[str, list[str]] = defaultdict(list)
    for folder in folders:
        if _kind_and_number(folder)[0] in NUMBERED_VARIABLES:
            models[folder.rpartition("/")[0]].append(folder)
    for inside in models.values():
        num_depthwise = sum(_kind_and_number(x)[0] == "depthwise_conv2d" for x in inside)
        network = {count: name for name, count in NUM_BLOCKS.items()}.get(num_depthwise)
        order = _layers_by_class(network) if network else {}
        for folder in inside:
            kind, number = _kind_and_number(folder)
            known = order.get(kind, [])
            # An unexpected layer keeps its number, which `check_tensors` then rejects.
            names[folder] = known[number] if number < len(known) else f"{kind}_{number}"
    return names


def _layers_by_class(network: str) -> dict[str, list[str]]:
    """Returns Keras' names of the layers of each class, in order."""
    order: dict[str, list[str]] = defaultdict(list)
    for module in module_paths(network, NUM_BLOCKS[network]):
        if module == "classifier":
            is_v1 = network == "mobilenet_v1"
            order["conv2d" if is_v1 else "dense"].append("conv_preds" if is_v1 else "predictions")
            continue
        layer, batch_norm = layer_names(TEMPLATES[network], module, STAGES[network])
        kind = "depthwise_conv2d" if module.endswith("depthwise") else "conv2d"
        order[kind].append(layer)
        order["batch_normalization"].append(batch_norm)
    return order


def _pop_head(
    tensors: dict[str, np.ndarray], known: Collection[str], path: Path, need_head: bool
) -> list[DenseWeights]:
    """Removes a user's dense layer from the tensors of a file without a model, and returns it."""
    layers = [
        name.removesuffix("/kernel")
        for name, array in tensors.items()
        if name.endswith("/kernel") and array.ndim == 2 and name not in known
    ]
    if len(layers) > 1 and need_head:
        raise UserError(
            f"{path} holds the dense layers {', '.join(layers)} but not the layers between "
            "them: save the whole model, as .keras or .h5"
        )
    head = []
    for name in layers:
        kernel = tensors.pop(f"{name}/kernel")
        bias = tensors.pop(f"{name}/bias", np.zeros(kernel.shape[-1], np.float32))
        head.append(DenseWeights(kernel, bias, "linear"))
    if len(head) > 1:
        note(f"{path}: its dense layers {', '.join(layers)} are left out")
        return []
    return head


def _datasets(file: h5py.File | h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """Returns the name and the content of every HDF5 data set in `file`."""
    found: list[tuple[str, Any]] = []
    file.visititems(lambda name, item: found.append((name, item)))
    return [(name, item) for name, item in found if isinstance(item, h5py.Dataset)]


def _read_tfjs(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Reads `model.json` of TensorFlow.js, and the weights in files next to it.

    Returns the description of the model as Keras writes it, and the tensors by LAYER/VARIABLE.
    """
    model = json.loads(path.read_text(encoding="utf-8"))
    topology = model["modelTopology"]
    topology = topology.get("model_config", topology)
    if "class_name" not in topology:
        raise UserError(f"{path} is no layers model of TensorFlow.js: convert the Keras model")
    tensors: dict[str, np.ndarray] = {}
    for group in model["weightsManifest"]:
        files = [path.parent / Path(name).name for name in group["paths"]]
        content = b"".join(file.read_bytes() for file in files)
        for weight in group["weights"]:
            layer, variable = weight["name"].split("/")[-2:]
            array, content = _take_tfjs(weight, content)
            _add(tensors, layer, variable, array, path)
        if content:
            raise UserError(f"cannot read {path}: its weights are followed by other bytes")
    return json.dumps(topology), tensors


def _take_tfjs(weight: dict[str, Any], content: bytes) -> tuple[np.ndarray, bytes]:
    """Returns a tensor from the start of `content`, and the rest. Quantisation is undone."""
    quantization = weight.get("quantization", {})
    dtype = np.dtype(quantization.get("dtype", weight["dtype"])).newbyteorder("<")
    count = math.prod(weight["shape"])
    array = np.frombuffer(content, dtype, count).reshape(weight["shape"]).astype(np.float32)
    if "scale" in quantization:
        array = array * np.float32(quantization["scale"]) + np.float32(quantization["min"])
    return array, content[count * dtype.itemsize :]
