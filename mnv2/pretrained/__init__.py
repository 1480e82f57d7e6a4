"""Networks with pretrained weights, from this package or from other frameworks.

>>> pretrained = load("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5")
>>> logits = pretrained.model.apply(pretrained.variables, pretrained.preprocess(images))

Files are read as arrays and are never unpickled. Neither Keras nor PyTorch has to be installed,
except that PyTorch is needed to read `.pth` and `.pt` files; it reads only tensors from them.
"""

import dataclasses
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from mnv2.models import mobilenet_v1, mobilenet_v2
from mnv2.pretrained import hub, imagenet, keras, native, slim, torch
from mnv2.pretrained.infer import infer_network
from mnv2.pretrained.loaded import Pretrained as Pretrained
from mnv2.pretrained.preprocessing import Preprocessing as Preprocessing
from mnv2.runtime.errors import UserError, check_choice, check_positive
from mnv2.runtime.layout import NETWORK

READERS = {"keras": keras.read, "torch": torch.read, "slim": slim.read}
FORMAT_OF_SUFFIX = {
    **dict.fromkeys((".h5", ".keras"), "keras"),
    **dict.fromkeys((".safetensors", ".pth", ".pt"), "torch"),
}
NAMING_SCHEMES = ("mnv2", "keras", "torchvision")


def load(
    path: str | Path, *, format: str | None = None, drop_background: bool = False
) -> Pretrained:
    """Loads a file: builds the network that the file holds, with its weights.

    keras   `.h5`, `.weights.h5` and `.keras` files of MobileNet and MobileNetV2 from
            keras.applications, with or without their top; also inside a larger model, under a head
            of global average pooling and dense layers
    torch   `.safetensors`, `.pth` and `.pt` files of MobileNetV2 with the tensor names of
            torchvision, timm, d-li14 or tonylins, and of timm's MobileNetV1
    slim    checkpoints `model.ckpt-N` of both networks, given by their common prefix or folder
    mnv2    the folder of a run, or a `.safetensors` file that `save` wrote

    `format` is one of these four names; by default it is inferred from the file. If there is no
    file `path`, it may be the name of a repository on the Hugging Face hub. `drop_background`
    removes the first of slim's 1001 classes.

    Raises UserError if the file cannot be read, if it holds another network, or if a tensor is
    missing, unexpected or has the wrong shape.
    """
    if format is not None:
        check_choice(format, ("mnv2", *READERS), "format")
    source = Path(path).expanduser()
    prefix = slim.find_prefix(source)
    if not source.exists() and prefix is None:
        if not hub.is_repository_name(str(path)):
            raise UserError(f"no such file: {source}")
        source = hub.download(str(path))
    loaded = _read(source, prefix, format)
    return loaded.without_background() if drop_background else loaded


def load_classifier(weights: str, image_size: int | None = None) -> Pretrained:
    """Loads weights that have a classifier, for square images of `image_size` pixels.

    By default the images have the size for which the weights were trained. Raises UserError as
    `load` does, and if there is no classifier.
    """
    loaded = load(weights)
    if not loaded.num_classes:
        raise UserError(
            f"{weights} holds no classifier, so it knows no classes: fine-tune it first"
        )
    if image_size is None:
        return loaded
    check_positive(image_size, "--image_size")
    return loaded.with_image_size(image_size)


def save(pretrained: Pretrained, path: str | Path, *, names: str = "mnv2") -> None:
    """Saves weights under the tensor names of this package or of another framework.

    mnv2         `.safetensors`, for `load`
    keras        `.h5`, for `load_weights` of MobileNet and MobileNetV2 from keras.applications
    torchvision  `.safetensors`, or `.pth` if PyTorch is installed, for `load_state_dict`

    Raises UserError if the other framework would not build the same network.
    """
    check_choice(names, NAMING_SCHEMES, "names")
    path = Path(path)
    suffixes = {"mnv2": (".safetensors",), "keras": (".h5",)}.get(
        names, (".safetensors", ".pth", ".pt")
    )
    if path.suffix not in suffixes:
        raise UserError(
            f"{names} weights are written to {' or '.join(suffixes)} files, not {path.name!r}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if names == "mnv2":
        native.write(path, pretrained)
        return
    _check_buildable(pretrained.model, names)
    arrays = flatten_dict(pretrained.variables, sep="/")
    if names == "torchvision":
        torch.write(path, arrays)
    else:
        is_v1 = type(pretrained.model) is mobilenet_v1.MobileNetV1
        keras.write(path, arrays, "mobilenet_v1" if is_v1 else "mobilenet_v2")


def _read(source: Path, prefix: Path | None, format: str | None) -> Pretrained:
    """Reads `source`, or the slim checkpoint `prefix`, in the given or inferred format."""
    if format == "mnv2" or native.is_run(source) or native.is_export(source):
        return native.read_run(source) if source.is_dir() else native.read(source)
    if prefix is not None:
        format, source = format or "slim", prefix
    format = format or FORMAT_OF_SUFFIX.get(source.suffix)
    if format is None:
        if source.is_dir():
            raise UserError(
                f"{source} is neither the folder of a run (it has no {NETWORK}) "
                "nor of a slim checkpoint (it has no .index file)"
            )
        raise UserError(
            f"unknown format {source.suffix!r} of {source}: the known suffixes are "
            f"{', '.join(FORMAT_OF_SUFFIX)}"
        )
    contents = READERS[format](source)
    loaded = infer_network(contents, str(source))
    if contents.head:
        return loaded
    return dataclasses.replace(loaded, class_names=imagenet.class_names(loaded.num_classes))


def _check_buildable(model: Any, names: str) -> None:
    """Raises UserError unless the other framework would build the same network."""
    keras_v1 = names == "keras" and isinstance(model, mobilenet_v1.MobileNetV1)
    if not keras_v1 and not isinstance(model, mobilenet_v2.MobileNetV2):
        raise UserError(f"{names} names exist for MobileNetV2, not for {type(model).__name__}")
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
                f"the {names} network has {field} = {value!r} but this one has "
                f"{getattr(model, field)!r}: the results would differ"
            )
    if names == "torchvision" and not model.num_classes:
        raise UserError("the torchvision network has a classifier but this one has none")
