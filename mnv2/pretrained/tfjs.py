"""Reads the layers models of TensorFlow.js: `model.json`, and the weights in files next to it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from mnv2.runtime.errors import UserError


def read(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the description of the model as Keras writes it, and its tensors by LAYER/VARIABLE.

    Raises UserError if a file is missing or damaged, or holds a graph instead of layers.
    """
    try:
        model = json.loads(path.read_text(encoding="utf-8"))
        topology = model["modelTopology"]
        topology = topology.get("model_config", topology)
        if "class_name" not in topology:
            raise UserError(f"{path} is no layers model of TensorFlow.js: convert the Keras model")
        tensors: dict[str, np.ndarray] = {}
        for group in model["weightsManifest"]:
            files = [path.parent / Path(name).name for name in group["paths"]]
            content = b"".join(file.read_bytes() for file in files)
            for weight in group["weights"]:
                name = "/".join(weight["name"].split("/")[-2:])
                if name in tensors:
                    raise UserError(f"{path} holds two tensors of the name {name!r}")
                tensors[name], content = _take(weight, content)
            if content:
                raise UserError(f"cannot read {path}: its weights are followed by other bytes")
    except UserError:
        raise
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    return json.dumps(topology), tensors


def _take(weight: dict[str, Any], content: bytes) -> tuple[np.ndarray, bytes]:
    """Returns a tensor from the start of `content`, and the rest. Quantisation is undone."""
    quantization = weight.get("quantization", {})
    dtype = np.dtype(quantization.get("dtype", weight["dtype"])).newbyteorder("<")
    count = math.prod(weight["shape"])
    array = np.frombuffer(content, dtype, count).reshape(weight["shape"]).astype(np.float32)
    if "scale" in quantization:
        array = array * np.float32(quantization["scale"]) + np.float32(quantization["min"])
    return array, content[count * dtype.itemsize :]
