"""What `jax.pmap` takes: a state that lies whole on every device, and batches split over devices.

The state has no device axis: every device computes the same new state. pmap is jit(shard_map)
underneath. With several processes it also copies the state at each step: 7 ms for the 580 arrays of
the ablation's network on two CPU processes.
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def place[Tree](tree: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Copies every array whole to each of `devices` (default: this process's devices)."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard[Tree](batch: Tree, devices: Sequence[jax.Device] | None = None) -> Tree:
    """Splits rows over `devices`, or this process's: b ... -> devices b/devices ..."""
    count = len(devices or jax.local_devices())
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
