"""What `jax.pmap` is given: a state that lies whole on every device, and batches split over them.

A state has no device axis: every device computes the same new one. pmap is JAX's own
jit(shard_map); where there are several processes it also copies the state at each step, which costs
7 ms for the 580 arrays of the ablation's network on two CPU processes.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def place[Tree](tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Every array whole on each of `devices`, or of this process's, as steps give it back."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard[Tree](batch: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Each array's rows over `devices`, or this process's: b ... -> devices b/devices ..."""
    count = len(devices or jax.local_devices())
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def share() -> tuple[int, int]:
    """(which, of how many): this process's part of a batch."""
    return jax.process_index(), jax.process_count()


def writes() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0
