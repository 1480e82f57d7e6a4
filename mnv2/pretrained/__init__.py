"""Networks with weights that were trained before, here or elsewhere.

>>> pretrained = load("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5")
>>> logits = pretrained.model.apply(pretrained.variables, pretrained.preprocess(images))

Files are read as arrays and never unpickled; neither Keras nor PyTorch need be installed, except
that `.pth` and `.pt` are read by PyTorch, tensors only.
"""

import dataclasses
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from mnv2.models import mobilenet_v1, mobilenet_v2
from mnv2.pretrained import hub, imagenet, keras, native, slim, torch
from mnv2.pretrained.network import Pretrained as Pretrained
from mnv2.pretrained.network import assemble
from mnv2.pretrained.preprocessing import Preprocessing as Preprocessing
from mnv2.runtime.errors import UserError, check_choice

READERS = {"keras": keras.read, "torch": torch.read, "slim": slim.read}
SUFFIXES = {
    **dict.fromkeys((".h5", ".keras"), "keras"),
    **dict.fromkeys((".safetensors", ".pth", ".pt"), "torch"),
}
NAMES = ("mnv2", "keras", "torchvision")


def load(
    path: str | Path, *, format: str | None = None, drop_background: bool = False
) -> Pretrained:
    """Builds the network that a file holds, with its weights.

    keras   `.h5`, `.weights.h5` and `.keras` of keras.applications' MobileNet and MobileNetV2, with
            or without their top; also inside a larger model, under a head of global average
            pooling and dense layers
    torch   `.safetensors`, `.pth` and `.pt` of MobileNetV2 under the names of torchvision, timm,
            d-li14 and tonylins, and of timm's MobileNetV1
    slim    checkpoints `model.ckpt-N` of both, given their common prefix or their folder
    mnv2    a run's folder, or a `.safetensors` file that `save` wrote

    `format` is found out where it is not given. What is no file may be a repository's name on the
    Hugging Face hub. `drop_background` leaves out the first of slim's 1001 classes.

    Raises UserError for a file that cannot be read, that holds another network, or in which a
    tensor is missing, has the wrong shape, or is one too many.
    """
    if format is not None:
        check_choice(format, ("mnv2", *READERS), "format")
    source = Path(path).expanduser()
    prefix = slim.find(source)
    if not source.exists() and prefix is None:
        if not hub.is_name(str(path)):
            raise UserError(f"no such file: {source}")
        source = hub.download(str(path))
    loaded = _read(source, prefix, format)
    return loaded.without_background() if drop_background else loaded


def save(pretrained: Pretrained, path: str | Path, *, names: str = "mnv2") -> None:
    """Writes weights for this package (`.safetensors`) or under someone else's names.

    keras        `.h5`, for `load_weights` of keras.applications' MobileNet and MobileNetV2
    torchvision  `.safetensors`, or `.pth` where PyTorch is installed, for `load_state_dict`

    Raises UserError if the network is not one that the other framework would build.
    """
    check_choice(names, NAMES, "names")
    path = Path(path)
    suffixes = {"mnv2": (".safetensors",), "keras": (".h5",)}.get(
        names, (".safetensors", ".pth", ".pt")
    )
    if path.suffix not in suffixes:
        raise UserError(f"{names} weights go to {' or '.join(suffixes)}, not {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if names == "mnv2":
        native.write(path, pretrained)
        return
    _check_buildable(pretrained.model, names)
    arrays = flatten_dict(pretrained.variables, sep="/")
    if names == "torchvision":
        torch.write(path, arrays)
    else:
        network = type(pretrained.model)
        v1 = network is mobilenet_v1.MobileNetV1
        keras.write(path, arrays, "mobilenet_v1" if v1 else "mobilenet_v2")


def resized(pretrained: Pretrained, size: int) -> Pretrained:
    """The same network for square images of another size."""
    return dataclasses.replace(pretrained, image_size=(size, size))


def _read(source: Path, prefix: Path | None, format: str | None) -> Pretrained:
    if format == "mnv2" or native.is_run(source) or native.is_export(source):
        return native.read_run(source) if source.is_dir() else native.read(source)
    if prefix is not None:
        format, source = format or "slim", prefix
    format = format or SUFFIXES.get(source.suffix)
    if format is None:
        if source.is_dir():
            raise UserError(
                f"{source} is neither a run's folder (it has no {native.DESCRIPTION}) nor a "
                "slim checkpoint's (no .index)"
            )
        raise UserError(
            f"unknown format {source.suffix!r} of {source}: known are {', '.join(SUFFIXES)}"
        )
    tensors = READERS[format](source)
    loaded = assemble(tensors, str(source))
    if tensors.head:
        return loaded
    return dataclasses.replace(loaded, class_names=imagenet.class_names(loaded.num_classes))


def _check_buildable(model: Any, names: str) -> None:
    """Raises UserError unless the other framework would build the same network."""
    keras_v1 = names == "keras" and isinstance(model, mobilenet_v1.MobileNetV1)
    if not keras_v1 and not isinstance(model, mobilenet_v2.MobileNetV2):
        raise UserError(f"{names} names are for MobileNetV2, not {type(model).__name__}")
    needed: dict[str, Any] = (
        {"padding": "same", "bn_epsilon": 1e-3}
        if names == "keras"
        else {"padding": "symmetric", "bn_epsilon": 1e-5}
    )
    if keras_v1:
        needed |= {"strides": mobilenet_v1.IMAGENET_STRIDES, "xception": False}
    else:
        needed |= {
            "strides": mobilenet_v2.IMAGENET_STRIDES,
            "repeats": mobilenet_v2.REPEATS,
            "rounding": "nearest",
            "expansion": 6,
            "bottleneck": "linear",
            "shortcut": "bottleneck",
            "block": "inverted_residual",
        }
    for field, value in needed.items():
        if getattr(model, field) != value:
            raise UserError(
                f"{names}'s network has {field} = {value!r}, this one {getattr(model, field)!r}: "
                "it would compute something else"
            )
    if names == "torchvision" and not model.num_classes:
        raise UserError("torchvision's network has a classifier, this one has none")
