"""The chips for which XLA's compilers run without one."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnv2.runtime.errors import UserError

# What XLA's GPU compiler has to know of an H100 with 80 GB (SXM).
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Chip(NamedTuple):
    """A chip as a target of a compiler.

    Attributes:
        platform: "tpu" or "cuda".
        topology: The name of the smallest group of chips that the compiler knows.
        gigahertz: The clock of a TPU, by which cycles become seconds. It follows from the peak
            that Google publishes and the size of the matrix units; None if that is not published.
        bandwidth: Bytes per second of a GPU's memory, by which traffic becomes seconds.
    """

    platform: str
    topology: str
    gigahertz: float | None = None
    bandwidth: float | None = None


CHIPS = {
    "v5e": Chip("tpu", "v5e:2x2", gigahertz=1.5),
    "v4": Chip("tpu", "v4:2x2x1", gigahertz=1.05),
    "v5p": Chip("tpu", "v5p:2x2x1", gigahertz=1.75),
    "v6e": Chip("tpu", "v6e:2x2"),
    "H100": Chip("cuda", "1x1x1", bandwidth=3.352e12),
}
PACKAGES = {"tpu": "libtpu", "cuda": "jax_cuda13_plugin"}
COMMANDS = {"tpu": "make tpu", "cuda": "make h100"}


def check_installed(chip: Chip) -> None:
    """Raises UserError if the compiler for a chip is not installed."""
    if importlib.util.find_spec(PACKAGES[chip.platform]) is None:
        raise UserError(
            f"XLA's compiler for {chip.platform} is not installed here ({PACKAGES[chip.platform]}):"
            f" {COMMANDS[chip.platform]} installs it into an environment of its own"
        )


def environment(chip: Chip) -> dict[str, str]:
    """Returns the environment variables of a process that compiles for a chip."""
    changed = {"JAX_PLATFORMS": "cpu"}
    if chip.platform == "tpu":  # libtpu would look for the chip's own machine
        changed |= {
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    else:  # autotuning would need the GPU; ptxas is a program in a package
        nvidia = importlib.util.find_spec("nvidia")
        folders = [str(p) for root in (nvidia and nvidia.submodule_search_locations) or ()
                   for p in Path(root).glob("*/bin")]  # fmt: skip
        changed |= {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0",
            "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
        }
    return {**os.environ, **changed}


def one_chip(chip: Chip) -> NamedSharding:
    """Returns the sharding that places arrays whole on one chip of this kind."""
    from jax.experimental import topologies

    if chip.platform == "cuda":
        import jax_plugins.xla_cuda13  # noqa: F401  # type: ignore[import-not-found]

        options: dict[str, Any] = {"target_config": H100, "topology": chip.topology}
        devices = topologies.get_topology_desc("h100", platform="cuda", **options).devices
    else:
        devices = topologies.get_topology_desc(chip.topology, platform="tpu").devices
    return NamedSharding(Mesh(np.array(devices[:1]), ("chip",)), PartitionSpec())
