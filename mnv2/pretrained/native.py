"""Reads and writes weights of this package: the folder of a run, or one `.safetensors` file.

Both contain a description in JSON: the network, the preprocessing that it expects, and the names
of its classes.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mnv2.models import create_model, name_and_fields
from mnv2.pretrained.infer import check_tensors, fit_channels, shapes_of, to_variables
from mnv2.pretrained.loaded import DenseHead, Pretrained
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError, first_line
from mnv2.runtime.files import AnyPath, write_json
from mnv2.runtime.layout import CHECKPOINTS, NETWORK

METADATA_KEY = "mnv2"  # of the description in a .safetensors file


def description_of(
    model: Any,
    channels: int,
    preprocess: Preprocessing,
    image_size: tuple[int, int],
    class_names: Sequence[str] | None,
    output: str = "softmax",
) -> dict[str, Any]:
    """Returns the description of a network, ready for JSON: everything except its arrays.

    The arguments are as in `Pretrained`; `channels` is the number of channels of its images.
    """
    head = model.layers if isinstance(model, DenseHead) else ()
    backbone = model.backbone if head else model
    network, fields = name_and_fields(backbone)
    return {
        "network": network,
        "fields": fields,
        "head": head,
        "channels": channels,
        "preprocess": dataclasses.asdict(preprocess),
        "image_size": image_size,
        "class_names": class_names,
        "output": output,
    }


def write_description(folder: AnyPath, description: dict[str, Any]) -> None:
    """Writes the description of the network in a run's checkpoints to the folder of the run."""
    write_json(folder / NETWORK, description)


def is_run(path: AnyPath) -> bool:
    """Returns whether `path` is the folder of a run."""
    return (path / NETWORK).exists()


def read_run(folder: AnyPath) -> Pretrained:
    """Reads the newest checkpoint of a run, with averaged parameters if the run keeps them.

    Raises UserError if it cannot be read, or if a tensor is missing, unexpected or misshapen.
    """
    from mnv2.runtime import packed_arrays  # imports Orbax, which files do not wait for

    try:
        description = json.loads((folder / NETWORK).read_text(encoding="utf-8"))
        arrays = _eval_variables(packed_arrays.read_newest(folder / CHECKPOINTS))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder}: {first_line(error)}") from error
    return _build(description, arrays, str(folder))


def _eval_variables(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the variables for evaluation: averaged parameters, if any, and statistics."""
    if any(name.startswith("ema/") for name in state):
        state = {
            name.removeprefix("ema/"): array
            for name, array in state.items()
            if name.startswith("ema/")
        }
    return {
        name: array for name, array in state.items() if name.startswith(("params/", "batch_stats/"))
    }


def is_export(path: Path) -> bool:
    """Returns whether `path` is a `.safetensors` file that `write` wrote."""
    try:
        with safe_open(path, "numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read(path: Path) -> Pretrained:
    """Reads a file that `write` wrote.

    Raises UserError if it cannot be read, or if a tensor is missing, unexpected or misshapen.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise UserError(f"{path} is no file of mnv2: it does not describe its network")
            description = json.loads(metadata[METADATA_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except UserError:
        raise
    except Exception as error:  # a damaged file raises several types
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    return _build(description, arrays, str(path))


def write(path: Path, pretrained: Pretrained) -> None:
    """Writes a network with its weights and its description to one `.safetensors` file."""
    description = description_of(
        pretrained.model,
        pretrained.channels,
        pretrained.preprocess,
        pretrained.image_size,
        pretrained.class_names,
        pretrained.output,
    )
    arrays = {
        name: np.ascontiguousarray(array)
        for name, array in flatten_dict(pretrained.variables, sep="/").items()
    }
    # Not by save_file, whose files only their owner can read.
    path.write_bytes(save(arrays, metadata={METADATA_KEY: json.dumps(description)}))


def _build(description: Any, arrays: dict[str, Any], source: str) -> Pretrained:
    """Builds the described network with weights by path. `source` names the file in messages."""
    try:
        fields = _with_tuples(description["fields"])
        model: nn.Module = create_model(description["network"], **fields)
        if description["head"]:
            model = DenseHead(model, tuple((units, name) for units, name in description["head"]))
        preprocess = Preprocessing.of(description["preprocess"])
        height, width = description["image_size"]
        class_names = description["class_names"]
        names = None if class_names is None else tuple(class_names)
        channels, output = description["channels"], description["output"]
        shapes = shapes_of(model, channels)
    except UserError as error:
        raise UserError(f"{source} describes a network that cannot be built: {error}") from None
    except Exception as error:  # a damaged description raises several types
        raise UserError(
            f"the description of the network in {source} is damaged: {error!r}"
        ) from None
    check_tensors(arrays, shapes, source, {})
    preprocess = fit_channels(preprocess, channels, source)
    return Pretrained(model, to_variables(arrays), preprocess, (height, width), names, output)


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """Returns `values` with tuples instead of the lists of JSON."""
    return {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
