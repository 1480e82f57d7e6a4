"""The content of a checkpoint: a few long vectors, an index and a checksum.

A training state has hundreds of small arrays. Orbax spends 2 ms per array on the processor that
also trains: a second for MobileNetV2. So all arrays of one type are joined to one vector (50 ms in
all), and an index holds their names, types and shapes.
"""

import math
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath, absolute


def name_of(path: Any) -> str:
    """Returns the name of a leaf, such as params/stem/kernel, from its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def pack(tree: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Copies a tree's arrays to one vector per type; returns the vectors and their index."""
    parts: dict[str, list[np.ndarray]] = {}
    names = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        parts.setdefault(leaf.dtype.name, []).append(leaf.ravel())
        names.append((name_of(path), leaf.dtype.name, leaf.shape))
    vectors = {dtype: np.concatenate(arrays) for dtype, arrays in parts.items()}
    checksums = {dtype: zlib.crc32(vector.data) for dtype, vector in vectors.items()}
    return vectors, {"arrays": names, "crc32": checksums}


def read(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a checkpoint: its arrays by name, and its index.

    Raises ValueError if the checksum says that the arrays are not those that were saved.
    """
    saved = manager.restore(
        step,
        args=ocp.args.Composite(state=ocp.args.StandardRestore(), index=ocp.args.JsonRestore()),
    )
    index, arrays = saved["index"], {}
    vectors = {dtype: np.asarray(vector) for dtype, vector in saved["state"].items()}
    for dtype, checksum in index["crc32"].items():
        if zlib.crc32(vectors[dtype].data) != checksum:
            raise ValueError(f"the checksum of its {dtype} numbers is wrong")
    begins = dict.fromkeys(vectors, 0)
    for name, dtype, shape in index["arrays"]:
        end = begins[dtype] + math.prod(shape)
        arrays[name] = vectors[dtype][begins[dtype] : end].reshape(shape)
        begins[dtype] = end
    return arrays, index


def reader(folder: AnyPath) -> ocp.CheckpointManager:
    """Opens a folder of checkpoints for reading, by this process alone.

    Otherwise Orbax waits, at each read, for all processes of the run to read the same.
    """
    alone = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader{index}"
        )
    options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
    return ocp.CheckpointManager(absolute(folder), options=options)


def read_newest(folder: AnyPath) -> dict[str, np.ndarray]:
    """Reads the arrays of the newest checkpoint in `folder`, by name.

    Raises UserError if there is no checkpoint.
    """
    with reader(folder) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder} holds no checkpoint yet")
        return read(manager, step)[0]
