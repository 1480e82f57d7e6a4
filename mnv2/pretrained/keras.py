"""Reads and writes MobileNet and MobileNetV2 in the files of keras.applications.

A user's own model with such a network and a dense head is read too. `.h5` files give the name of
every layer. `.weights.h5` and `.keras` files (a zip with a `.weights.h5` file inside) number the
layers of each class instead, in the order of the model, which is the order of the network.
"""

import dataclasses
import io
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from jax.typing import ArrayLike

from mnv2.models import make_divisible
from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import CHANNELS
from mnv2.pretrained import keras_graph, keras_model, tfjs
from mnv2.pretrained.infer import DenseWeights, FileContents
from mnv2.pretrained.keras_model import IMAGENET_CLASSES, KERAS_VIEW, TOP_LAYERS
from mnv2.pretrained.names import (
    NUM_BLOCKS,
    VariableSuffixes,
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
VARIABLE_SUFFIXES = VariableSuffixes(
    "/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance"
)

# The variables of each class of numbered layers, in the order of their numbers.
NUMBERED_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
    "normalization": ("mean", "variance", "count"),
}


def read(path: Path, need_head: bool = True) -> FileContents:
    """Reads a file. Raises UserError if it is damaged or holds another network.

    Unless `need_head`, a head that is not understood is left out, after a note.
    """
    if path.suffix == ".json":
        text, arrays = tfjs.read(path)
        tensors: dict[str, np.ndarray] = {}
        for name, array in arrays.items():
            layer, _, variable = name.partition("/")
            _add(tensors, layer, variable, array, path)
        return _contents(path, keras_graph.read(text, str(path)), tensors, need_head)
    try:
        with _open(path) as file:
            graph = _read_graph(path, file)
            tensors = _tensors(file, graph, path)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return _contents(path, graph, tensors, need_head)


def _contents(
    path: Path, graph: keras_graph.Graph | None, tensors: dict[str, np.ndarray], need_head: bool
) -> FileContents:
    """Finds the network among the tensors of a file, and what its model does around it."""
    top = next((name for name in TOP_LAYERS if f"{name}/kernel" in tensors), None)
    network = "mobilenet_v1" if "conv_pw_1/kernel" in tensors else "mobilenet_v2"
    model = None
    try:
        model = keras_model.read(graph, tensors, SLIM, str(path)) if graph else None
    except UserError as error:
        if need_head or graph is None:
            raise
        own = list(_tensor_names(network, None).values())
        model, top = keras_model.read_backbone(graph, tensors, own, SLIM, str(path)), None
        note(f"{error}; not needed: only the network before its head is used")
    if not {"conv1/kernel", "Conv1/kernel"} & tensors.keys():
        raise UserError(f"{path} holds no MobileNet or MobileNetV2 of keras.applications")
    if model is None and top and tensors[f"{top}/kernel"].shape[-1] not in IMAGENET_CLASSES:
        # A user's own classes, whatever Keras calls the layer: seen as in a file with the model.
        if tensors[f"{top}/kernel"].ndim == 4:  # V1's classifier is a 1x1 convolution
            tensors[f"{top}/kernel"] = tensors[f"{top}/kernel"][0, 0]
        top = None
    names = _tensor_names(network, top)
    if model is None:
        head: Sequence[DenseWeights] = _pop_head(tensors, names, path, need_head)
        preprocess = dataclasses.replace(SLIM, **(KERAS_VIEW if head else {}))
        model = keras_model.KerasModel(preprocess, None, head, "softmax")
        if head:
            note(
                f"{path} holds only weights: assumed that its classes exclude each other "
                "(softmax), and that nothing but pooling is between the network and its dense layer"
            )
    return FileContents(
        network,
        translate(tensors, names, tensorflow_layout),
        names,
        FIELDS[network],
        model.preprocess,
        model.image_size or size_to_assume(path),
        head=model.head,
        output=model.output,
    )


def write(path: Path, arrays: Mapping[str, ArrayLike], network: str) -> None:
    """Writes arrays by path as an `.h5` file of weights, as keras.applications distributes them.

    `model.load_weights(path)` reads it; for 1000 classes, `MobileNetV2(weights=path)` does too.
    """
    top = "conv_preds" if network == "mobilenet_v1" else "predictions"
    names = _tensor_names(network, top if "params/classifier/kernel" in arrays else None)
    layers: dict[str, list[str]] = defaultdict(list)
    with h5py.File(path, "w") as file:
        for ours, theirs in names.items():
            layer, _, variable = theirs.partition("/")
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

    def layer_names(module: str) -> tuple[str, str]:
        if module == "classifier":
            return str(top), ""
        return _layer_names(network, module)

    return tensor_names(
        network, NUM_BLOCKS[network], layer_names, VARIABLE_SUFFIXES, top is not None
    )


def _layer_names(network: str, module: str) -> tuple[str, str]:
    return _v1_layers(module) if network == "mobilenet_v1" else _v2_layers(module)


def _v1_layers(module: str) -> tuple[str, str]:
    if module == "stem":
        return "conv1", "conv1_bn"
    block, part = module.removeprefix("block_").split("/")
    layer = f"conv_{ {'depthwise': 'dw', 'pointwise': 'pw'}[part] }_{int(block) + 1}"
    return layer, f"{layer}_bn"


def _v2_layers(module: str) -> tuple[str, str]:
    outside_blocks = {"stem": ("Conv1", "bn_Conv1"), "last_conv": ("Conv_1", "Conv_1_bn")}
    if module in outside_blocks:
        return outside_blocks[module]
    layer = module.replace("/", "_")
    layer = re.sub(r"^block_0_", "expanded_conv_", layer)
    return layer, f"{layer}_BN"


def _open(path: Path) -> h5py.File:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    return h5py.File(path)


def _read_graph(path: Path, file: h5py.File) -> keras_graph.Graph | None:
    """Reads the description of the model; returns None if the file holds only weights."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            text = archive.read("config.json").decode()
    elif "model_config" in file.attrs:
        text = file.attrs["model_config"]
        text = text.decode() if isinstance(text, bytes) else text
    else:
        return None
    return keras_graph.read(text, str(path))


def _tensors(file: h5py.File, graph: keras_graph.Graph | None, path: Path) -> dict[str, np.ndarray]:
    """Reads all tensors except those of the optimiser, by LAYER/VARIABLE."""
    if graph is None:
        return _numbered_tensors(file, path) or _named_tensors(file, path)
    return _tensors_in_folders(file, graph, path) or _named_tensors(file, path)


def _named_tensors(file: h5py.File, path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an `.h5` file by LAYER/VARIABLE, at any depth of nested models."""
    found: dict[str, np.ndarray] = {}
    for name, dataset in _datasets(file.get("model_weights", file)):
        layer, variable = name.split("/")[-2:]
        if not name.startswith("optimizer_weights") and variable != "seed_generator_state":
            _add(found, layer, variable, dataset, path)
    return found


def _tensors_in_folders(
    file: h5py.File, graph: keras_graph.Graph, path: Path
) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.weights.h5` file from the folders of a model's layers.

    Returns an empty dict for another kind of file.
    """
    layers = {layer.folder: layer for layer in graph.layers}
    found: dict[str, np.ndarray] = {}
    for name, dataset in _datasets(file):
        match = re.fullmatch(r"(layers/.*)/vars/(\d+)", name)
        if match and (layer := layers.get(match[1])):
            kind = re.sub(r"_\d+$", "", match[1].rpartition("/")[2])
            variables = NUMBERED_VARIABLES.get(kind, ())
            if kind == "batch_normalization":  # without scale or center there are fewer
                variables = tuple(
                    variable
                    for variable, setting in zip(
                        variables, ("scale", "center", "", ""), strict=True
                    )
                    if layer.config.get(setting, True)
                )
            index = int(match[2])
            variable = variables[index] if index < len(variables) else f"vars/{index}"
            _add(found, layer.name, variable, dataset, path)
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


def _numbered_tensors(file: h5py.File, path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.weights.h5` file without its model, by the names of `.h5` files.

    The file names them .../layers/CLASS_N/vars/I, with N counting a model's layers of one class.
    Returns an empty dict for another kind of file.
    """
    models: dict[str, dict[tuple[str, int], dict[int, np.ndarray]]] = {}
    for name, dataset in _datasets(file):
        match = re.fullmatch(
            rf"(.*?)layers/({'|'.join(NUMBERED_VARIABLES)})(?:_(\d+))?/vars/(\d+)", name
        )
        if match and not name.startswith("optimizer"):
            layer = models.setdefault(match[1], {}).setdefault((match[2], int(match[3] or 0)), {})
            layer[int(match[4])] = dataset[()]
    tensors: dict[str, np.ndarray] = {}
    for layers in models.values():
        num_depthwise = sum(kind == "depthwise_conv2d" for kind, _ in layers)
        network = {count: name for name, count in NUM_BLOCKS.items()}.get(num_depthwise)
        order = _layers_by_class(network) if network else {}
        for (kind, number), variables in layers.items():
            known = order.get(kind, [])
            # An unexpected layer keeps its numbered name, which `check_tensors` then rejects.
            layer_name = known[number] if number < len(known) else f"{kind}_{number}"
            for index, array in variables.items():
                names = NUMBERED_VARIABLES[kind]  # an unexpected variable keeps its number, too
                variable = names[index] if index < len(names) else f"vars/{index}"
                tensors[f"{layer_name}/{variable}"] = array
    top = tensors.get("predictions/kernel")
    if top is not None and top.shape[-1] in IMAGENET_CLASSES:
        note(f"{path} does not name its layers: assumed that its classes are those of ImageNet")
    return tensors


def _layers_by_class(network: str) -> dict[str, list[str]]:
    """Returns Keras' names of the layers of each class, in order."""
    order: dict[str, list[str]] = defaultdict(list)
    for module in module_paths(network, NUM_BLOCKS[network]):
        if module == "classifier":
            is_v1 = network == "mobilenet_v1"
            order["conv2d" if is_v1 else "dense"].append("conv_preds" if is_v1 else "predictions")
            continue
        layer, batch_norm = _layer_names(network, module)
        kind = "depthwise_conv2d" if module.endswith("depthwise") else "conv2d"
        order[kind].append(layer)
        order["batch_normalization"].append(batch_norm)
    return order


def _pop_head(
    tensors: dict[str, np.ndarray], names: Mapping[str, str], path: Path, need_head: bool
) -> list[DenseWeights]:
    """Removes a user's dense layer from the tensors of a file without a model, and returns it."""
    known = set(names.values())
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
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    file.visititems(visit)
    return found
