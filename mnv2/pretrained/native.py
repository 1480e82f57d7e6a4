"""This package's own weights: a run's folder, and a single `.safetensors` file.

Both tell in JSON which network it is, what it expects of images and what its classes are called.
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
from safetensors.numpy import save_file

from mnv2.models import create_model
from mnv2.models import describe as describe_model
from mnv2.pretrained.network import DenseHead, Pretrained, check, shapes_of, to_variables
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_json
from mnv2.training.checkpoint import restore_variables

DESCRIPTION = "network.json"  # in a run's folder
METADATA = "mnv2"  # in a .safetensors file


def describe(
    model: Any,
    channels: int,
    preprocess: Preprocessing,
    image_size: tuple[int, int],
    class_names: Sequence[str] | None,
    output: str = "softmax",
) -> dict[str, Any]:
    """All that a file says beside the arrays."""
    head = model.layers if isinstance(model, DenseHead) else ()
    backbone = model.backbone if head else model
    network, fields = describe_model(backbone)
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


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Says in a run's folder what its checkpoints hold."""
    write_json(folder / DESCRIPTION, description)


def is_run(path: Path) -> bool:
    return (path / DESCRIPTION).exists()


def read_run(folder: Path) -> Pretrained:
    """The newest checkpoint of a run, with averaged parameters where it keeps them."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
        variables = restore_variables(folder / "checkpoints")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder}: {str(error).splitlines()[0]}") from error
    return _build(description, flatten_dict(variables, sep="/"), str(folder))


def is_export(path: Path) -> bool:
    """True for a `.safetensors` file that `write` wrote."""
    try:
        with safe_open(path, "numpy") as file:
            return METADATA in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read(path: Path) -> Pretrained:
    """Reads what `write` wrote. Raises UserError for a tensor that is off, naming it."""
    try:
        with safe_open(path, "numpy") as file:
            description = json.loads(file.metadata()[METADATA])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    return _build(description, arrays, str(path))


def write(path: Path, pretrained: Pretrained) -> None:
    """Writes a network with its weights and all that is known of it as one file."""
    description = describe(
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
    save_file(arrays, path, metadata={METADATA: json.dumps(description)})


def _build(description: dict[str, Any], arrays: dict[str, Any], source: str) -> Pretrained:
    fields = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["fields"].items()
    }
    model: nn.Module = create_model(description["network"], **fields)
    if description["head"]:
        model = DenseHead(model, tuple((units, name) for units, name in description["head"]))
    check(arrays, shapes_of(model, description["channels"]), source, {})
    given = description["preprocess"]
    preprocess = Preprocessing(
        given["method"], given["crop"], tuple(given["mean"]), tuple(given["std"])
    )
    height, width = description["image_size"]
    names = description["class_names"]
    return Pretrained(
        model,
        to_variables(arrays),
        preprocess,
        (height, width),
        None if names is None else tuple(names),
        description["output"],
    )
