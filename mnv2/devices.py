"""One program on every device of every process, each on its share of the batch.

A state lies whole on every device; the first axis of a batch is split over all of them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"
WHOLE, SPLIT = PartitionSpec(), PartitionSpec(AXIS)


def all_devices(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `devices`, or of those of all processes."""
    return Mesh(np.array(devices or jax.devices()), (AXIS,))


def replicate[Tree](tree: Tree, mesh: Mesh) -> Tree:
    """Every array whole on every device; each process gives the same."""
    whole = NamedSharding(mesh, WHOLE)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(whole, np.asarray(x)), tree
    )


def shard[Tree](batch: Tree, mesh: Mesh) -> Tree:
    """Every array split over the devices; each process gives its own rows, in its order."""
    split = NamedSharding(mesh, SPLIT)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split, x), batch)


def on_each(
    function: Callable[..., Any], mesh: Mesh, takes: Any, gives: Any, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`function` compiled, with WHOLE or SPLIT for each of what it takes and gives.

    In it `AXIS` is the axis to add up over. What it gives as WHOLE must be equal everywhere.
    """
    mapped = jax.shard_map(function, mesh=mesh, in_specs=takes, out_specs=gives, check_vma=False)
    return jax.jit(mapped, donate_argnums=donate)


def share() -> tuple[int, int]:
    """(which, of how many): this process's part of a batch."""
    return jax.process_index(), jax.process_count()


def writes() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0
