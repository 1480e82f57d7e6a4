"""Reads and writes MobileNet and MobileNetV2 with the names of torchvision, timm and others.

All of them use PyTorch's layout, O I H W. People save a state dict as it is, or in a dict with an
optimiser's state, arguments and counters, and with prefixes such as `module.` and `_orig_mod.`. One
tensor that every network of a naming scheme has shows both the scheme and the prefix.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import ArrayLike
from safetensors.numpy import load_file, save

from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.preprocess.host import named_view
from mnv2.pretrained import hub_config, pickles
from mnv2.pretrained.infer import FileContents, Usage
from mnv2.pretrained.names import Templates, tensor_names, translate
from mnv2.pretrained.preprocessing import NORMALIZATIONS, Preprocessing, size_in_name
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few, note

# Usual names of a classifier.
CLASSIFIERS = re.compile(r"classifier|fc|head|linear|logits|predictions|(^|\.)\d+$")

# PyTorch's batch norm has epsilon 1e-5 and momentum 0.1, which this package writes as 1 - 0.1.
FIELDS = {"padding": "symmetric", "bn_epsilon": 1e-5, "bn_momentum": 0.9}

SUFFIXES = (".weight", ".bias", ".weight", ".bias", ".running_mean", ".running_var")
TRANSFORMERS_SUFFIXES = (
    *(".convolution.weight", ".bias", ".normalization.weight", ".normalization.bias"),
    *(".normalization.running_mean", ".normalization.running_var"),
)

TORCHVISION = {
    "stem": "features.0.0 features.0.1",
    "block_0/depthwise": "features.1.conv.0.0 features.1.conv.0.1",
    "block_0/project": "features.1.conv.1 features.1.conv.2",
    "expand": "features.{next}.conv.0.0 features.{next}.conv.0.1",
    "depthwise": "features.{next}.conv.1.0 features.{next}.conv.1.1",
    "project": "features.{next}.conv.2 features.{next}.conv.3",
    "last_conv": "features.18.0 features.18.1",
}
TONYLINS = {  # each block is one sequence: convolution, batch norm, activation, convolution, ...
    "stem": "features.0.0 features.0.1",
    "block_0/depthwise": "features.1.conv.0 features.1.conv.1",
    "block_0/project": "features.1.conv.3 features.1.conv.4",
    "expand": "features.{next}.conv.0 features.{next}.conv.1",
    "depthwise": "features.{next}.conv.3 features.{next}.conv.4",
    "project": "features.{next}.conv.6 features.{next}.conv.7",
    "last_conv": "features.18.0 features.18.1",
}
D_LI14 = TONYLINS | {"last_conv": "conv.0 conv.1"}
TIMM = {
    "stem": "conv_stem bn1",
    "block_0/depthwise": "blocks.0.0.conv_dw blocks.0.0.bn1",
    "block_0/project": "blocks.0.0.conv_pw blocks.0.0.bn2",
    "expand": "blocks.{stage}.{in_stage}.conv_pw blocks.{stage}.{in_stage}.bn1",
    "depthwise": "blocks.{stage}.{in_stage}.conv_dw blocks.{stage}.{in_stage}.bn2",
    "project": "blocks.{stage}.{in_stage}.conv_pwl blocks.{stage}.{in_stage}.bn3",
    "last_conv": "conv_head bn2",
}
TIMM_1 = {
    "stem": "conv_stem bn1",
    "depthwise": "blocks.{stage}.{in_stage}.conv_dw blocks.{stage}.{in_stage}.bn1",
    "pointwise": "blocks.{stage}.{in_stage}.conv_pw blocks.{stage}.{in_stage}.bn2",
}
TRANSFORMERS = {
    "mobilenet_v1": {
        "stem": "conv_stem",
        "depthwise": "layer.{twice}",
        "pointwise": "layer.{twice_next}",
    },
    "mobilenet_v2": {
        "stem": "conv_stem.first_conv",
        "block_0/depthwise": "conv_stem.conv_3x3",
        "block_0/project": "conv_stem.reduce_1x1",
        "expand": "layer.{previous}.expand_1x1",
        "depthwise": "layer.{previous}.conv_3x3",
        "project": "layer.{previous}.reduce_1x1",
        "last_conv": "conv_1x1",
    },
}

IMAGENET = NORMALIZATIONS["imagenet"]
# torchvision published weights twice; only the hash in the name of the file tells them apart.
TORCHVISION_1 = Preprocessing(named_view("bilinear", 224 / 256), *IMAGENET, assumed=True)
TORCHVISION_2 = Preprocessing(named_view("bilinear", 224 / 232), *IMAGENET, assumed=True)
HASH_1, HASH_2 = "b0353104", "7ebf99e0"
TIMM_V2 = Preprocessing(named_view("bicubic", 0.875), *IMAGENET)
TIMM_V1 = Preprocessing(named_view("bicubic", 0.875), *NORMALIZATIONS["half"])

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


class _Found(NamedTuple):
    """Where a network is in a file.

    keys     of the dicts around its state dict
    tensors  its state dict
    scheme   one of ANCHORS
    prefix   what precedes the names of this scheme
    """

    keys: tuple[str, ...]
    tensors: Tensors
    scheme: str
    prefix: str

    @property
    def path(self) -> str:
        return "/".join((*self.keys, self.root.rstrip("."))).rstrip("/")

    @property
    def root(self) -> str:
        """The prefix of the whole network, which may have a head beside its features."""
        return re.sub(r"(^|\.)features\.$", r"\1", self.prefix)

    def full_name(self, name: str) -> str:
        """Returns the name in the file. A prefix of torchvision's names includes `features.`."""
        if self.scheme in ("torchvision", "flat") and not name.startswith("features."):
            return self.prefix.removesuffix("features.") + name
        return self.prefix + name.removeprefix("features.")


def read(path: Path, need_head: bool = True) -> FileContents:
    """Reads a file. Raises UserError if it holds another network, others if it is damaged.

    A single linear layer of any name in its head is the classifier. Unless `need_head`, another
    head is left out, after a note.
    """
    found, arrays = _load(path)
    contents = _contents(path, found, arrays)
    names = {ours: found.full_name(name) for ours, name in contents.names.items()}
    trunk = set(names.values())
    # Whatever begins as a layer of the trunk belongs to it, known or not: `features.3.`, `blocks.`
    matches = (re.match(rf"{re.escape(found.prefix)}\w+\.", name) for name in trunk)
    starts = tuple({match[0] for match in matches if match})
    head = [name for name in arrays if name not in trunk and not name.startswith(starts)]
    linear = [
        x.removesuffix(".weight") for x in head if x.endswith(".weight") and arrays[x].ndim == 2
    ]
    if len(linear) > 1 and need_head:
        raise UserError(
            f"it has the linear layers {', '.join(linear[:6])}, and a state dict does not say what "
            "is between them: give a file with one, or use load_backbone"
        )
    classifier = linear[0] if len(linear) == 1 else ""
    kernel, bias = f"{classifier}.weight", f"{classifier}.bias"
    if not need_head and set(head) - {kernel, bias}:
        note(f"{path}: left out its head, {first_few(head)}")
        arrays = {name: array for name, array in arrays.items() if name not in head}
    elif classifier:
        if not CLASSIFIERS.search(classifier):
            note(f"{path}: took {classifier}, its only linear layer, as the classifier")
        arrays.setdefault(bias, np.zeros(len(arrays[kernel]), np.float32))
        names |= {"params/classifier/kernel": kernel, "params/classifier/bias": bias}
    return contents._replace(arrays=translate(arrays, names, _to_hwio), names=names)


def write(path: Path, arrays: Mapping[str, ArrayLike], suffix: str) -> None:
    """Writes a MobileNetV2 as torchvision's state dict: .safetensors, or .pth or .pt by PyTorch."""
    templates = TORCHVISION | {"classifier": "classifier.1"}
    names = tensor_names("mobilenet_v2", templates, SUFFIXES)
    state = {
        names[name]: np.ascontiguousarray(_to_oihw(np.asarray(array)))
        for name, array in arrays.items()
    }
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = np.array(0, np.int64)
    if suffix == ".safetensors":
        path.write_bytes(save(state))  # not by save_file, whose files only their owner can read
        return
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{suffix} files need PyTorch: pip install torch, or use .safetensors"
        ) from None
    with path.open("wb") as file:  # by a path, torch.save would write its name into the file
        torch.save({name: torch.from_numpy(array) for name, array in state.items()}, file)


def is_safetensors(path: Path) -> bool:
    """Returns whether a file begins as `.safetensors` files do: a length, then JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and 2 <= length <= path.stat().st_size - 8


def _load(path: Path) -> tuple[_Found, dict[str, np.ndarray]]:
    """Finds the network in a file, and reads its tensors by the names of the file, no counters.

    A note says what was left out. Raises UserError if it holds no network or several ones.
    """
    tree = load_file(path) if is_safetensors(path) else pickles.read(path)
    dicts = dict(_state_dicts(tree, (), set()))
    networks = [
        _Found(keys, tensors, scheme, prefix)
        for keys, tensors in dicts.items()
        for scheme, prefix in _find_schemes(tensors)
    ]
    if not networks:
        raise UserError(f"it {_explain_absence(tree, dicts)}")
    chosen = _choose(networks)
    tensors, left_out = chosen.tensors, _others(tree, chosen.keys)
    siblings = [other for other in networks if other.tensors is tensors and other != chosen]
    if siblings:
        left_out = [*(other.root for other in siblings), *left_out]
        tensors = {name: x for name, x in tensors.items() if name.startswith(chosen.root)}
    if left_out:
        what = f"{chosen.path or 'the weights'}{', averaged' if len(networks) > 1 else ''}"
        note(f"{path}: read {what}; left out {first_few(left_out, 8)}")
    return chosen, {
        name: tensor.numpy() if isinstance(tensor, pickles.Tensor) else tensor
        for name, tensor in tensors.items()
        if _is_tensor(tensor) and not name.endswith(COUNTERS)
    }


def _is_tensor(value: Any) -> bool:
    return isinstance(value, pickles.Tensor | np.ndarray)


def _state_dicts(
    tree: Any, keys: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Tensors]]:
    """Yields the dicts that hold kernels by name, with the `keys` that lead to them."""
    if not isinstance(tree, dict) or id(tree) in seen or len(keys) == DEPTH:
        return
    seen.add(id(tree))
    named = {name: x for name, x in tree.items() if isinstance(name, str)}
    if any(_is_tensor(x) and len(x.shape) >= 2 for x in named.values()):
        yield keys, named
    for name, value in named.items():
        yield from _state_dicts(value, (*keys, name), seen)


def _find_schemes(tensors: Tensors) -> Iterator[tuple[str, str]]:
    """Yields the scheme and the prefix of every network in a state dict."""
    for name, tensor in tensors.items():
        for scheme, anchor in ANCHORS.items():
            found = name == anchor or name.endswith(f".{anchor}")
            if found and _is_tensor(tensor) and len(tensor.shape) == 4:
                yield scheme, name.removesuffix(anchor)


def _choose(networks: list[_Found]) -> _Found:
    averaged = [network for network in networks if AVERAGED.search(network.path)]
    for candidates in (networks, averaged):
        if len(candidates) == 1:
            return candidates[0]
    paths = ", ".join(sorted(network.path or "its top level" for network in networks)[:6])
    raise UserError(f"it holds several networks, in {paths}: save the one to load by itself")


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
    objects = tree if isinstance(tree, dict) else {"it": tree}
    for name, value in objects.items():
        if isinstance(value, pickles.Foreign) and not pickles.HARMLESS.fullmatch(value.name):
            return (
                f"holds more than tensors: {name} is an object of the class {value.name}; "
                "save the model's state_dict()"
            )
    what = first_few(tree, 6) if isinstance(tree, dict) else type(tree).__name__
    return f"{holds}, and no tensors, only: {what[:80] or 'nothing'}"


def _contents(path: Path, found: _Found, arrays: Mapping[str, np.ndarray]) -> FileContents:
    """Returns what a scheme tells about a file; its names lack the prefix and the classifier."""
    scheme, network = found.scheme, "mobilenet_v2"
    fields: dict[str, Any] = FIELDS
    if scheme.startswith("transformers"):
        network = scheme.replace("transformers ", "mobilenet_")
        fields, usage = hub_config.of_transformers(path, network)
        names = tensor_names(network, TRANSFORMERS[network], TRANSFORMERS_SUFFIXES)
    elif scheme == "timm":
        in_file = [name.removeprefix(found.prefix) for name in arrays]
        stages = _timm_stages(in_file)
        if not any("conv_pwl" in name for name in in_file):
            network = "mobilenet_v1"
            names = tensor_names(network, TIMM_1, SUFFIXES, stages)
            usage = hub_config.of_timm(path, TIMM_V1)
        elif len(stages) != len(REPEATS):
            raise UserError(f"it has {len(stages)} stages but MobileNetV2 has {len(REPEATS)}")
        else:
            names = tensor_names(network, TIMM, SUFFIXES, stages)
            fields = {**FIELDS, "repeats": stages}
            usage = hub_config.of_timm(path, TIMM_V2)
    else:
        templates: Templates = TORCHVISION
        if scheme == "flat":
            # d-li14 keeps the last convolution outside of `features`.
            templates = D_LI14 if found.full_name("conv.0.weight") in arrays else TONYLINS
        names = tensor_names(network, templates, SUFFIXES)
        usage = _torchvision_usage(path)
    return FileContents(network, {}, names, fields, usage)


def _timm_stages(in_file: Sequence[str]) -> tuple[int, ...]:
    """Returns the number of blocks in each stage, which timm's names of tensors tell."""
    matches = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in in_file)
    blocks = {(int(match[1]), int(match[2])) for match in matches if match}
    # A name may have any number.
    repeats = {stage: min(index + 1, len(in_file)) for stage, index in sorted(blocks)}
    return tuple(repeats.values())


def _torchvision_usage(path: Path) -> Usage:
    """Says how torchvision, d-li14 and tonylins prepare pictures, which is not in the file."""
    name, preprocess = (2, TORCHVISION_2) if HASH_2 in path.name else (1, TORCHVISION_1)
    why = ", from its name" if HASH_1 in path.name or name == 2 else ""
    height, width = size_in_name(path.name) or (224, 224)
    note(
        f"{path} does not tell how to prepare pictures: as for torchvision's IMAGENET1K_V{name}"
        f"{why} ({preprocess.view}, to {height} x {width})"
    )
    return Usage(preprocess, (height, width))


def _to_hwio(path: str, array: np.ndarray) -> np.ndarray:
    """Transposes kernels: O I H W to H W I O, and O I of a dense layer to I O."""
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _to_oihw(array: np.ndarray) -> np.ndarray:
    """Transposes kernels: H W I O to O I H W, and I O of a dense layer to O I."""
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
