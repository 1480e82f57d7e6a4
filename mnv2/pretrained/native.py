"""Reads and writes weights of this package: the folder of a run, or one `.safetensors` file.

Both contain a description in JSON: the network, its preprocessing, and the names of its classes.
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
from mnv2.pretrained.infer import Usage, restore
from mnv2.pretrained.loaded import DenseHead, Pretrained
from mnv2.pretrained.preprocessing import Preprocessing
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
    """Returns the description of a network, ready for JSON; arguments are as in `Pretrained`."""
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
    """Reads the newest checkpoint of a run, with averaged parameters if the run keeps them."""
    from mnv2.runtime import packed_arrays  # imports Orbax, which files do not wait for

    description = json.loads((folder / NETWORK).read_text(encoding="utf-8"))
    arrays = _eval_variables(packed_arrays.read_newest(folder / CHECKPOINTS))
    return _build(description, arrays)


def _eval_variables(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the variables for evaluation: averaged parameters, if any, and statistics."""
    averaged = {x.removeprefix("ema/"): y for x, y in state.items() if x.startswith("ema/")}
    kinds = ("params/", "batch_stats/")
    return {name: x for name, x in (averaged or state).items() if name.startswith(kinds)}


def is_export(path: Path) -> bool:
    """Returns whether `path` is a `.safetensors` file that `write` wrote."""
    try:
        with safe_open(path, "numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def read(path: Path) -> Pretrained:
    """Reads a file that `write` wrote. Raises UserError if the tensors are not those described."""
    with safe_open(path, "numpy") as file:
        description = json.loads(file.metadata()[METADATA_KEY])
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _build(description, arrays)


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


def _build(description: Any, arrays: dict[str, Any]) -> Pretrained:
    """Builds the described network with weights by path."""
    model: nn.Module = create_model(description["network"], **description["fields"])
    if description["head"]:
        model = DenseHead(model, tuple((units, name) for units, name in description["head"]))
    height, width = description["image_size"]
    names = description["class_names"]
    names = None if names is None else tuple(names)
    preprocess = Preprocessing.of(description["preprocess"])
    return restore(
        model, arrays, Usage(preprocess, (height, width), names, description["output"]), {}
    )
