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

from mnv2.pretrained import keras_model
from mnv2.pretrained.infer import DenseWeights, FileContents
from mnv2.pretrained.names import (
    NUM_BLOCKS,
    VariableSuffixes,
    module_paths,
    tensor_names,
    translate,
)
from mnv2.pretrained.slim import SLIM, tensorflow_layout
from mnv2.runtime.errors import UserError

FIELDS = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.99},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.999},
}
VARIABLE_SUFFIXES = VariableSuffixes(
    "/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance"
)
TOP_LAYERS = ("predictions", "Logits", "conv_preds")

# The variables of each class of numbered layers, in the order of their numbers.
NUMBERED_VARIABLES = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}


def read(path: Path) -> FileContents:
    """Reads a file. Raises UserError if it is damaged or holds another network."""
    try:
        with _open(path) as file:
            model = _read_model(path, file)
            head_layers = [name for name, _ in model.dense] if model else []
            tensors = _numbered_tensors(file, head_layers) or _named_tensors(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    network = "mobilenet_v1" if "conv_pw_1/kernel" in tensors else "mobilenet_v2"
    if not {"conv1/kernel", "Conv1/kernel"} & tensors.keys():
        raise UserError(f"{path} holds no MobileNet or MobileNetV2 of keras.applications")
    top = next((name for name in TOP_LAYERS if f"{name}/kernel" in tensors), None)
    names = _tensor_names(network, top)
    head = _pop_head(tensors, names, model, path)
    contents = FileContents(
        network,
        translate(tensors, names, tensorflow_layout),
        names,
        FIELDS[network],
        SLIM,
        head=head,
    )
    if model is None:
        return contents
    return dataclasses.replace(
        contents,
        preprocess=model.preprocess,
        image_size=model.image_size,
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
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    return h5py.File(path)


def _read_model(path: Path, file: h5py.File) -> keras_model.KerasModel | None:
    """Parses the JSON of the model; returns None if the file holds only weights."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            text = archive.read("config.json").decode()
    elif "model_config" in file.attrs:
        text = file.attrs["model_config"]
        text = text.decode() if isinstance(text, bytes) else text
    else:
        return None
    return keras_model.parse(text, SLIM, str(path))


def _named_tensors(file: h5py.File) -> dict[str, np.ndarray]:
    """Reads the tensors of an `.h5` file by LAYER/VARIABLE, at any depth of nested models."""
    tensors = {}
    for name, dataset in _datasets(file.get("model_weights", file)):
        layer, variable = name.split("/")[-2:]
        variable = variable.removesuffix(":0").replace("depthwise_kernel", "kernel")
        if not name.startswith("optimizer_weights") and variable != "seed_generator_state":
            tensors[f"{layer}/{variable}"] = dataset[()]
    return tensors


def _numbered_tensors(file: h5py.File, head_layers: Sequence[str]) -> dict[str, np.ndarray]:
    """Reads the tensors of a `.weights.h5` file by the names that `.h5` files give them.

    The file names them .../layers/CLASS_N/vars/I, with N counting a model's layers of one class.
    `head_layers` are the names of the dense layers around the network. Returns an empty dict for
    another kind of file.
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
        order = _layers_by_class(network, head_layers) if network else {"dense": list(head_layers)}
        for (kind, number), variables in layers.items():
            known = order.get(kind, [])
            # An unexpected layer keeps its numbered name, which `check_tensors` then rejects.
            layer_name = known[number] if number < len(known) else f"{kind}_{number}"
            for index, array in variables.items():
                tensors[f"{layer_name}/{NUMBERED_VARIABLES[kind][index]}"] = array
    return tensors


def _layers_by_class(network: str, head_layers: Sequence[str]) -> dict[str, list[str]]:
    """Returns Keras' names of the layers of each class, in order."""
    order: dict[str, list[str]] = defaultdict(list)
    for module in module_paths(network, NUM_BLOCKS[network]):
        if module == "classifier":
            order["dense"] = list(head_layers) or ["predictions"]
            if network == "mobilenet_v1":
                order["conv2d"].append("conv_preds")
            continue
        layer, batch_norm = _layer_names(network, module)
        kind = "depthwise_conv2d" if module.endswith("depthwise") else "conv2d"
        order[kind].append(layer)
        order["batch_normalization"].append(batch_norm)
    return order


def _pop_head(
    tensors: dict[str, np.ndarray],
    names: Mapping[str, str],
    model: keras_model.KerasModel | None,
    path: Path,
) -> list[DenseWeights]:
    """Removes a user's dense layers from `tensors` and returns them in order."""
    if model is not None:
        layers = list(model.dense)
    else:
        known = set(names.values())
        others = [
            name.removesuffix("/kernel")
            for name, array in tensors.items()
            if name.endswith("/kernel") and array.ndim == 2 and name not in known
        ]
        if len(others) > 1:
            raise UserError(
                f"{path} holds the dense layers {', '.join(others)} but not the layers between "
                "them: save the whole model, as .keras or .h5"
            )
        layers = [(name, "linear") for name in others]
    head = []
    for name, activation in layers:
        kernel = tensors.pop(f"{name}/kernel", None)
        if kernel is None:
            raise UserError(f"{path} lacks {name}/kernel")
        bias = tensors.pop(f"{name}/bias", np.zeros(kernel.shape[-1], np.float32))
        head.append(DenseWeights(kernel, bias, activation))
    return head


def _datasets(file: h5py.File | h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    """Returns the name and the content of every HDF5 data set in `file`."""
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    file.visititems(visit)
    return found
