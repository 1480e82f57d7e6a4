"""MobileNet and MobileNetV2 as keras.applications saves them, also under a user's own head.

`.h5` files name every layer. `.weights.h5` and `.keras` files (a zip with one inside) number layers
by class instead, in the order of the model, which is the order of the network.
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

from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.pretrained import keras_model
from mnv2.pretrained.network import Dense, Tensors, Variables, modules, table, translate
from mnv2.pretrained.slim import SLIM, tensorflow_layout
from mnv2.runtime.errors import UserError

BLOCKS = {"mobilenet_v1": len(V1_CHANNELS), "mobilenet_v2": sum(REPEATS)}
FIELDS = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.99},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.999},
}
VARIABLES = Variables("/kernel", "/bias", "/gamma", "/beta", "/moving_mean", "/moving_variance")
TOPS = ("predictions", "Logits", "conv_preds")

# Variables of a numbered layer, in order.
NUMBERED = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}


def read(path: Path) -> Tensors:
    """Reads a file's tensors. Raises UserError if it is damaged or holds another network."""
    try:
        with _open(path) as file:
            description = _describe(path, file)
            head = [name for name, _ in description.dense] if description else []
            state = _numbered(file, head) or _named(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    network = "mobilenet_v1" if "conv_pw_1/kernel" in state else "mobilenet_v2"
    if not {"conv1/kernel", "Conv1/kernel"} & state.keys():
        raise UserError(f"{path} holds no MobileNet or MobileNetV2 of keras.applications")
    top = next((name for name in TOPS if f"{name}/kernel" in state), None)
    names = _names(network, top)
    dense = _take_head(state, names, description, path)
    tensors = Tensors(
        network,
        translate(state, names, tensorflow_layout),
        names,
        FIELDS[network],
        SLIM,
        head=dense,
    )
    if description is None:
        return tensors
    return dataclasses.replace(
        tensors,
        preprocess=description.preprocess,
        image_size=description.image_size,
        output=description.output,
    )


def write(path: Path, arrays: Mapping[str, ArrayLike], network: str) -> None:
    """Writes an `.h5` file of weights, as keras.applications distributes them.

    `model.load_weights(path)` takes it, and `MobileNetV2(weights=path)` for 1000 classes.
    """
    top = "conv_preds" if network == "mobilenet_v1" else "predictions"
    names = _names(network, top if "params/classifier/kernel" in arrays else None)
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
        file.attrs["keras_version"] = b"2.15.0"  # the layout's


def _names(network: str, top: str | None) -> dict[str, str]:
    def layers(module: str) -> tuple[str, str]:
        if module == "classifier":
            return str(top), ""
        return (_v1 if network == "mobilenet_v1" else _v2)(module)

    return table(network, BLOCKS[network], layers, VARIABLES, top is not None)


def _v1(module: str) -> tuple[str, str]:
    if module == "stem":
        return "conv1", "conv1_bn"
    block, part = module.removeprefix("block_").split("/")
    layer = f"conv_{ {'depthwise': 'dw', 'pointwise': 'pw'}[part] }_{int(block) + 1}"
    return layer, f"{layer}_bn"


def _v2(module: str) -> tuple[str, str]:
    ends = {"stem": ("Conv1", "bn_Conv1"), "last_conv": ("Conv_1", "Conv_1_bn")}
    if module in ends:
        return ends[module]
    layer = module.replace("/", "_")
    layer = re.sub(r"^block_0_", "expanded_conv_", layer)
    return layer, f"{layer}_BN"


def _open(path: Path) -> h5py.File:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    return h5py.File(path)


def _describe(path: Path, file: h5py.File) -> keras_model.Description | None:
    """What the file says of the model; None where it holds weights alone."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            text = archive.read("config.json").decode()
    elif "model_config" in file.attrs:
        text = file.attrs["model_config"]
        text = text.decode() if isinstance(text, bytes) else text
    else:
        return None
    return keras_model.describe(text, SLIM, str(path))


def _named(file: h5py.File) -> dict[str, np.ndarray]:
    """Tensors of an `.h5` file: .../LAYER/VARIABLE, however deep the network is nested."""
    found = {}
    for name, dataset in _datasets(file.get("model_weights", file)):
        layer, variable = name.split("/")[-2:]
        variable = variable.removesuffix(":0").replace("depthwise_kernel", "kernel")
        if not name.startswith("optimizer_weights") and variable != "seed_generator_state":
            found[f"{layer}/{variable}"] = dataset[()]
    return found


def _numbered(file: h5py.File, head: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors of a `.weights.h5` file, .../layers/CLASS_N/vars/I, under `.h5` files' names.

    N counts a model's layers of one class; `head` names the dense layers around the network.
    """
    groups: dict[str, dict[tuple[str, int], dict[int, np.ndarray]]] = {}
    for name, dataset in _datasets(file):
        match = re.fullmatch(rf"(.*?)layers/({'|'.join(NUMBERED)})(?:_(\d+))?/vars/(\d+)", name)
        if match and not name.startswith("optimizer"):
            layer = groups.setdefault(match[1], {}).setdefault((match[2], int(match[3] or 0)), {})
            layer[int(match[4])] = dataset[()]
    found: dict[str, np.ndarray] = {}
    for layers in groups.values():
        depthwise = sum(kind == "depthwise_conv2d" for kind, _ in layers)
        network = {count: name for name, count in BLOCKS.items()}.get(depthwise)
        order = _order(network, head) if network else {"dense": list(head)}
        for (kind, number), variables in layers.items():
            known = order.get(kind, [])
            # A layer too many keeps a name of its own, which the check of names will refuse.
            layer_name = known[number] if number < len(known) else f"{kind}_{number}"
            for index, array in variables.items():
                found[f"{layer_name}/{NUMBERED[kind][index]}"] = array
    return found


def _order(network: str, head: Sequence[str]) -> dict[str, list[str]]:
    """Keras' name of the N-th layer of each class."""
    order: dict[str, list[str]] = defaultdict(list)
    for module in modules(network, BLOCKS[network]):
        if module == "classifier":
            order["dense"] = list(head) or ["predictions"]
            if network == "mobilenet_v1":
                order["conv2d"].append("conv_preds")
            continue
        layer, batch_norm = (_v1 if network == "mobilenet_v1" else _v2)(module)
        kind = "depthwise_conv2d" if module.endswith("depthwise") else "conv2d"
        order[kind].append(layer)
        order["batch_normalization"].append(batch_norm)
    return order


def _take_head(
    state: dict[str, np.ndarray],
    names: Mapping[str, str],
    description: keras_model.Description | None,
    path: Path,
) -> list[Dense]:
    """Removes a user's dense layers from `state`."""
    if description is not None:
        layers = list(description.dense)
    else:
        known = set(names.values())
        others = [
            name.removesuffix("/kernel")
            for name, array in state.items()
            if name.endswith("/kernel") and array.ndim == 2 and name not in known
        ]
        if len(others) > 1:
            raise UserError(
                f"{path} holds the dense layers {', '.join(others)} but not what stands between "
                "them: save the whole model, as .keras or .h5"
            )
        layers = [(name, "linear") for name in others]
    taken = []
    for name, activation in layers:
        kernel = state.pop(f"{name}/kernel", None)
        if kernel is None:
            raise UserError(f"{path} lacks {name}/kernel")
        bias = state.pop(f"{name}/bias", np.zeros(kernel.shape[-1], np.float32))
        taken.append(Dense(kernel, bias, activation))
    return taken


def _datasets(file: h5py.File | h5py.Group) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    file.visititems(visit)
    return found
