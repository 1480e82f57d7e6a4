"""Finds the weights of a network in a file of PyTorch or in a `.safetensors` file.

People save a state dict as it is, or in a dict with an optimiser's state, arguments and counters.
Its names may have prefixes, such as `module.` and `_orig_mod.`. One tensor that every network of a
naming scheme has shows both the scheme and the prefix.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file

from mnv2.pretrained import pickles
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note

# A convolution's kernel that every network of the scheme has. What precedes it is the prefix.
ANCHORS = {
    "torchvision": "1.conv.0.0.weight",
    "flat": "1.conv.0.weight",
    "timm": "blocks.0.0.conv_dw.weight",
    "transformers v2": "conv_stem.first_conv.convolution.weight",
    "transformers v1": "layer.0.convolution.weight",
}
# Counters that some trainers keep between the weights; a network does not use them.
COUNTERS = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")
AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
DEPTH = 4  # of dicts in dicts; an optimiser's are deeper or have numbers as keys

Tensors = Mapping[str, Any]  # pickles.Tensor or np.ndarray, by name


class Weights(NamedTuple):
    """The tensors of one network by the names of the file, without counters.

    scheme   one of ANCHORS
    prefix   what precedes the names of this scheme
    """

    arrays: dict[str, np.ndarray]
    scheme: str
    prefix: str


class _Network(NamedTuple):
    """Where a network is: the keys of the dicts around its state dict, and as in `Weights`."""

    keys: tuple[str, ...]
    tensors: Tensors
    scheme: str
    prefix: str

    @property
    def place(self) -> str:
        return "/".join((*self.keys, self.root.rstrip("."))).rstrip("/")

    @property
    def root(self) -> str:
        """The prefix of the whole network, which may have a head beside its features."""
        return re.sub(r"(^|\.)features\.$", r"\1", self.prefix)


def load(path: Path) -> Weights:
    """Reads the weights of a file. A note says what was left out.

    Averaged weights (EMA) are preferred, as timm prefers them. Raises UserError if the file cannot
    be read, or if it holds no network or several ones.
    """
    tree = _load_safetensors(path) if is_safetensors(path) else pickles.read(path)
    dicts = dict(_state_dicts(tree))
    networks = [
        _Network(keys, tensors, scheme, prefix)
        for keys, tensors in dicts.items()
        for scheme, prefix in _find_schemes(tensors)
    ]
    if not networks:
        raise UserError(f"{path} {_explain_absence(tree, dicts)}")
    chosen = _choose(networks, path)
    tensors, left_out = chosen.tensors, _others(tree, chosen.keys)
    siblings = [other for other in networks if other.tensors is tensors and other != chosen]
    if siblings:
        left_out = [*(other.root for other in siblings), *left_out]
        tensors = {name: x for name, x in tensors.items() if name.startswith(chosen.root)}
    if left_out:
        what = f"{chosen.place or 'the weights'}{', averaged' if len(networks) > 1 else ''}"
        note(f"{path}: read {what}; left out {first_few(left_out, 8)}")
    try:
        arrays = {
            name: tensor.numpy() if isinstance(tensor, pickles.Tensor) else tensor
            for name, tensor in tensors.items()
            if _is_tensor(tensor) and not name.endswith(COUNTERS)
        }
    except Exception as error:  # a damaged file raises several types
        raise pickles.cannot_read(path, error) from error
    return Weights(arrays, chosen.scheme, chosen.prefix)


def is_safetensors(path: Path) -> bool:
    """Returns whether a file begins as `.safetensors` files do: a length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= path.stat().st_size - 8


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(path)
    except Exception as error:  # a damaged file raises several types
        raise pickles.cannot_read(path, error) from error


def _is_tensor(value: Any) -> bool:
    return isinstance(value, pickles.Tensor | np.ndarray)


def _state_dicts(tree: Any) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """Yields the dicts that hold kernels by name, with the keys that lead to them."""
    seen: set[int] = set()
    level: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(DEPTH):
        following = []
        for keys, value in level:
            if not isinstance(value, dict) or id(value) in seen:
                continue
            seen.add(id(value))
            named = {name: x for name, x in value.items() if isinstance(name, str)}
            if any(_is_tensor(x) and len(x.shape) >= 2 for x in named.values()):
                yield keys, named
            following += [((*keys, name), x) for name, x in named.items()]
        level = following


def _find_schemes(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Yields the scheme and the prefix of every network in a state dict."""
    for name, tensor in tensors.items():
        for scheme, anchor in ANCHORS.items():
            found = name == anchor or name.endswith(f".{anchor}")
            if found and _is_tensor(tensor) and len(tensor.shape) == 4:
                yield scheme, name.removesuffix(anchor)


def _choose(networks: list[_Network], path: Path) -> _Network:
    averaged = [network for network in networks if AVERAGED.search(network.place)]
    for candidates in (networks, averaged):
        if len(candidates) == 1:
            return candidates[0]
    places = ", ".join(sorted(network.place or "its top level" for network in networks)[:6])
    raise UserError(f"{path} holds several networks, in {places}: save the one to load by itself")


def _others(tree: Any, keys: tuple[str, ...]) -> list[str]:
    """Names what stands beside the state dict to which `keys` lead, and what in it is no tensor."""
    names = []
    for key in keys:
        names += [name for name in tree if isinstance(name, str) and name != key]
        tree = tree[key]
    return names + [name for name, x in tree.items() if isinstance(name, str) and not _is_tensor(x)]


def _explain_absence(tree: Any, dicts: Mapping[tuple[str, ...], Tensors]) -> str:
    """Says what a file holds instead of a network."""
    holds = (
        "holds no MobileNet or MobileNetV2 of torchvision, timm, transformers, d-li14 or tonylins"
    )
    for tensors in dicts.values():
        name = next(name for name, x in tensors.items() if _is_tensor(x) and len(x.shape) >= 2)
        return f"{holds}: its tensors have names such as {name}"
    objects = {"it": tree} | (tree if isinstance(tree, dict) else {})
    for name, value in objects.items():
        if isinstance(value, pickles.Foreign) and value.name not in pickles.HARMLESS:
            return (
                f"holds more than tensors: {name} is an object of the class {value.name}; "
                "save the model's state_dict()"
            )
    keys = (
        ", ".join(x for x in tree if isinstance(x, str))[:80]
        if isinstance(tree, dict)
        else type(tree).__name__
    )
    return f"{holds}, and no tensors, only: {keys or 'nothing'}"
