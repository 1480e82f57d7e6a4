"""What `jax.pmap` takes: a state that lies whole on every device, and batches split over devices.

The state has no device axis: every device computes the same new state. pmap is jit(shard_map)
underneath. With several processes it also copies the state at each step: 7 ms for the 580 arrays of
the ablation's network on two CPU processes.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"

# The devices of a run; None: all, also those of other processes.
type Devices = tuple[jax.Device, ...] | None


def number_of(devices: Devices = None) -> int:
    """Returns the number of the devices of a run."""
    return len(devices) if devices else jax.device_count()


def platform_of(devices: Devices = None) -> str | None:
    """Returns the platform of the devices as operations know it; None if they know it not."""
    one = (devices or jax.devices())[0]
    if one.platform == "gpu":
        return "cuda" if "cuda" in one.client.platform_version.lower() else None
    return one.platform


def place[Tree](tree: Tree, devices: Devices = None) -> Tree:
    """Copies every array whole to each of `devices`, or to this process's."""
    mesh = Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def shard[Tree](batch: Tree, devices: Devices = None) -> Tree:
    """Splits rows over `devices`, or this process's: b ... -> devices b/devices ..."""
    count = len(devices or jax.local_devices())
    return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
