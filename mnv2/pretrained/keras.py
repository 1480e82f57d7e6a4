"""MobileNet and MobileNetV2 as keras.applications saves them.

`.h5` files name every layer. `.weights.h5` and `.keras` files (a zip with one inside) number layers
by class instead, in the order of the model, which is the order of the network.
"""

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from mnv2.errors import UserError
from mnv2.pretrained.network import Tensors

FIELDS = {
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.999},
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.99},
}

# Keras' name of a layer -> ours; a batch norm's is that of its convolution.
V2_LAYERS = (
    (r"Conv1|bn_Conv1", "stem"),
    (r"expanded_conv_(depthwise|project)(?:_BN)?", r"block_0/\1"),
    (r"block_(\d+)_(expand|depthwise|project)(?:_BN)?", r"block_\1/\2"),
    (r"Conv_1|Conv_1_bn", "last_conv"),
    (r"predictions|Logits", "classifier"),
)
V1_LAYERS = (
    (r"conv1|conv1_bn", "stem"),
    (r"conv_dw_(\d+)(?:_bn)?", r"block_\1/depthwise"),  # counted from 1: see _ours
    (r"conv_pw_(\d+)(?:_bn)?", r"block_\1/pointwise"),
    (r"conv_preds|predictions", "classifier"),
)

VARIABLES = {
    "kernel": "params/{}/kernel",
    "depthwise_kernel": "params/{}/kernel",
    "bias": "params/{}/bias",
    "gamma": "params/{}/bn/scale",
    "beta": "params/{}/bn/bias",
    "moving_mean": "batch_stats/{}/bn/mean",
    "moving_variance": "batch_stats/{}/bn/var",
}

# Order of a layer's variables in files that number them.
NUMBERED = {
    "conv2d": ("kernel", "bias"),
    "depthwise_conv2d": ("kernel",),
    "batch_normalization": ("gamma", "beta", "moving_mean", "moving_variance"),
    "dense": ("kernel", "bias"),
}


def preprocess(images: ArrayLike) -> jax.Array:
    """[0, 255] to [-1, 1]."""
    return jnp.asarray(images) / 127.5 - 1


def read(path: Path) -> Tensors:
    """Reads a file's tensors. Raises UserError if it is damaged or holds another network."""
    try:
        with _open(path) as file:
            named = _named(file) or _numbered(file)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    network = "mobilenet_v1" if any("pointwise" in name for name in named) else "mobilenet_v2"
    if "params/stem/kernel" not in named:
        raise UserError(f"{path} holds no MobileNet or MobileNetV2 of keras.applications")
    return Tensors(network, named, FIELDS[network], preprocess)


def _open(path: Path) -> h5py.File:
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            return h5py.File(io.BytesIO(archive.read("model.weights.h5")))
    return h5py.File(path)


def _named(file: h5py.File) -> dict[str, np.ndarray]:
    """Tensors of an `.h5` file: .../LAYER/VARIABLE, however deep the network is nested."""
    found = {}
    for name, dataset in _datasets(file):
        *_, layer, variable = name.split("/")
        variable = variable.removesuffix(":0")
        if variable in VARIABLES and (ours := _ours(layer)):
            found[VARIABLES[variable].format(ours)] = _layout(ours, variable, dataset[()])
    return found


def _ours(layer: str) -> str | None:
    for pattern, ours in V2_LAYERS:
        if match := re.fullmatch(pattern, layer):
            return match.expand(ours)
    for pattern, ours in V1_LAYERS:
        if match := re.fullmatch(pattern, layer):
            return re.sub(r"\d+", lambda n: str(int(n[0]) - 1), match.expand(ours))
    return None


def _numbered(file: h5py.File) -> dict[str, np.ndarray]:
    """Tensors of a `.weights.h5` file: .../layers/CLASS_N/vars/I, N counted by class."""
    groups: dict[str, dict[tuple[str, int], dict[int, np.ndarray]]] = {}
    for name, dataset in _datasets(file):
        match = re.fullmatch(rf"(.*?)layers/({'|'.join(NUMBERED)})(?:_(\d+))?/vars/(\d+)", name)
        if match:
            layer = groups.setdefault(match[1], {}).setdefault((match[2], int(match[3] or 0)), {})
            layer[int(match[4])] = dataset[()]
    for layers in groups.values():
        depthwise = sum(kind == "depthwise_conv2d" for kind, _ in layers)
        if depthwise in (13, 17):
            return dict(_translate(layers, _order(depthwise)))
    return {}


def _order(depthwise: int) -> dict[str, list[str]]:
    """Our name of the N-th layer of each class, in Keras' order."""
    order: dict[str, list[str]] = {"depthwise_conv2d": [], "batch_normalization": ["stem"]}
    convs = ["stem"]
    v1 = depthwise == 13
    for i in range(depthwise):
        parts = ["depthwise", "pointwise"] if v1 else ["expand", "depthwise", "project"]
        for part in parts[1:] if i == 0 and not v1 else parts:
            name = f"block_{i}/{part}"
            order["batch_normalization"].append(name)
            (order["depthwise_conv2d"] if part == "depthwise" else convs).append(name)
    if not v1:
        order["batch_normalization"].append("last_conv")
        convs.append("last_conv")
    order["conv2d"] = [*convs, "classifier"] if v1 else convs
    order["dense"] = ["classifier"]
    return order


def _translate(
    layers: dict[tuple[str, int], dict[int, np.ndarray]], order: dict[str, list[str]]
) -> Iterator[tuple[str, np.ndarray]]:
    for (kind, number), variables in layers.items():
        # A layer too many keeps a name of its own, which the check of names will refuse.
        known = order[kind]
        ours = known[number] if number < len(known) else f"{kind}_{number}"
        for index, array in variables.items():
            variable = NUMBERED[kind][index]
            yield VARIABLES[variable].format(ours), _layout(ours, variable, array)


def _layout(ours: str, variable: str, array: np.ndarray) -> np.ndarray:
    if ours.endswith("depthwise") and "kernel" in variable:
        return array.transpose(0, 1, 3, 2)  # h w c 1 -> h w 1 c
    if ours == "classifier" and array.ndim == 4:
        return array[0, 0]  # V1's classifier is a 1x1 convolution
    return array


def _datasets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    found: list[tuple[str, h5py.Dataset]] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append((name, item))

    file.visititems(visit)
    return found
