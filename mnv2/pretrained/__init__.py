"""Networks with pretrained weights, from this package or from other frameworks.

>>> pretrained = load("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5")
>>> logits = pretrained.model.apply(pretrained.variables, pretrained.preprocess(images))

Nothing in a file is imported or run. Only to write `.pth` files is PyTorch needed.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict

from mnv2.models import MobileNetV1, MobileNetV2, flat_fields, name_and_fields
from mnv2.pretrained import formats, hub, keras, native, slim, torch
from mnv2.pretrained.infer import infer_network
from mnv2.pretrained.loaded import Pretrained as Pretrained
from mnv2.pretrained.preprocessing import Preprocessing as Preprocessing
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import AnyPath, did_you_mean, given_folder, in_bucket, matches, replacing
from mnv2.runtime.layout import NETWORK

NAMING_SCHEMES = {  # of `save`, with the suffixes of their files
    "mnv2": (".safetensors",),
    "keras": (".h5",),
    "torchvision": (".safetensors", ".pth", ".pt"),
}


def load(path: str | Path, *, drop_background: bool = False, need_head: bool = True) -> Pretrained:
    """Loads a file: builds the network that the file holds, with its weights.

    That is a file of Keras, torchvision, timm, transformers, d-li14, tonylins, slim or `save`,
    the folder of a run, or the name of a repository on the Hugging Face hub; docs/weights.md says
    more. The content of a file tells which. `drop_background` removes the first of slim's 1001
    classes. Unless `need_head`, a head that is not understood is left out, after a note.

    Raises UserError if the file cannot be read, if it holds another network, or if a tensor is
    missing, unexpected, misshapen or not finite.
    """
    loaded = _read_run_on_gcs(str(path)) if in_bucket(path) else _read(path, need_head)
    return loaded.without_background() if drop_background else loaded


def load_backbone(path: str | Path) -> Pretrained:
    """Loads a file without any head: the network gives pooled features."""
    return load(path, need_head=False).backbone()


def save(pretrained: Pretrained, path: str | Path, *, names: str = "mnv2") -> None:
    """Saves weights under the tensor names of this package or of another framework.

    mnv2         `.safetensors`, for `load`
    keras        `.h5`, for `load_weights` of MobileNet and MobileNetV2 from keras.applications
    torchvision  `.safetensors`, or `.pth` if PyTorch is installed, for `load_state_dict`

    Raises UserError if the other framework would not build the same network.
    """
    check_choice(names, NAMING_SCHEMES, "names")
    path = Path(path)
    if path.suffix not in (suffixes := NAMING_SCHEMES[names]):
        raise UserError(
            f"{names} weights are written to {' or '.join(suffixes)} files, not {path.name!r}"
        )
    if names != "mnv2":
        _check_buildable(pretrained, names)
    arrays = flatten_dict(pretrained.variables, sep="/")
    with replacing(path) as unfinished:  # an interrupted conversion leaves the old file
        if names == "mnv2":
            native.write(unfinished, pretrained)
        elif names == "torchvision":
            torch.write(unfinished, arrays, path.suffix)
        else:
            keras.write(unfinished, arrays, name_and_fields(pretrained.model)[0])


@contextlib.contextmanager
def reading(path: AnyPath) -> Iterator[None]:
    """Adds the name of a file to what is wrong with it.

    Damaged data raise errors of almost any type. They become one line, too.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = " ".join(str(said).split())[:200] or type(error).__name__
        raise UserError(f"cannot read {path}: {text}") from error


def _read(path: str | Path, need_head: bool) -> Pretrained:
    """Reads a local file or folder, or a repository."""
    source = Path(path).expanduser()
    prefix = slim.find_prefix(source)
    if not source.exists() and prefix is None:
        if not hub.is_repository_name(str(path)):
            raise UserError(f"no such file: {source}{did_you_mean(source)}")
        source = hub.download(str(path))
    if native.is_run(source):
        with reading(source):
            return native.read_run(source)
    if prefix is not None:
        with reading(prefix):
            return infer_network(slim.read(prefix), str(prefix))
    source = _file_in(source) if source.is_dir() else source
    found = formats.format_of(source)
    with reading(source):
        if found == "mnv2":
            return native.read(source)
        contents = (keras if found == "keras" else torch).read(source, need_head)
        return infer_network(contents, str(source))


def _read_run_on_gcs(address: str) -> Pretrained:
    """Reads the folder of a run on Google Cloud Storage; of other files the libraries read none."""
    folder = given_folder(address, "weights")
    if not native.is_run(folder):
        raise UserError(
            f"{folder} is not the folder of a run: other weights are read from local files only"
        )
    with reading(folder):
        return native.read_run(folder)


def _file_in(folder: Path) -> Path:
    """Returns the file of weights in a folder of the Hugging Face hub, which has a config.json."""
    found = hub.find_weights(folder) if (folder / "config.json").exists() else None
    if found is None and (runs := matches(folder, f"*/*/{NETWORK}")):
        raise UserError(f"{folder} is the folder of several runs: give one, as {runs[0].parent}")
    if found is None:
        raise UserError(
            f"{folder} is neither the folder of a run (it has no {NETWORK}) nor of a slim "
            "checkpoint, nor one of the hub with config.json and weights: name a file in it"
        )
    return found


# Fields that change nothing of what a network computes in evaluation: what training alone uses, and
# the type of numbers.
SAME_RESULTS = ("bn_momentum", "bn_frozen", "dropout", "axis_name", "dtype")
CONVENTIONS = {"keras": keras.FIELDS["mobilenet_v2"], "torchvision": torch.FIELDS}


def _check_buildable(pretrained: Pretrained, names: str) -> None:
    """Raises UserError unless the other framework would build the same network.

    It builds one with the same number of classes and width, which its users give.
    """
    model: Any = pretrained.model
    is_v1 = isinstance(model, MobileNetV1)
    if not isinstance(model, MobileNetV2) and not (names == "keras" and is_v1):
        raise UserError(f"{names} names exist for MobileNetV2, not for {type(model).__name__}")
    built = {**flat_fields(type(model)), **CONVENTIONS[names]}
    for field, ours in flat_fields(model).items():
        if field not in ("num_classes", "width", *SAME_RESULTS) and ours != built[field]:
            raise UserError(
                f"the {names} network has {field} = {built[field]!r} but this one has {ours!r}"
            )
    if names == "keras" and not keras.rounds_alike(model.width, is_v1):
        raise UserError(f"keras rounds the channels of width {model.width:g} in another way")
    if pretrained.output != "softmax" or (names == "keras" and model.num_classes == 1):
        raise UserError(f"the {names} network ends in a softmax but this one in a sigmoid")
    if names == "torchvision" and not model.num_classes:
        raise UserError("the torchvision network has a classifier but this one has none")
    if names == "torchvision" and pretrained.channels != 3:
        raise UserError("the torchvision network takes colour pictures but this one gray ones")
