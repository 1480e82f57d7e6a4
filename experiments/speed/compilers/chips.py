"""The chips for which XLA's compilers run without one."""

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mnv2.ops import depthwise, depthwise_triton
from mnv2.runtime.errors import UserError

# What XLA's GPU compiler has to know of an H100 with 80 GB (SXM), an A100 with 40 GB (SXM) and an
# RTX 4090, by their names in Pallas.
EVERY_GPU = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 %s
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 12 } device_description_str: "%s"
"""
GPUS = {
    "H100": EVERY_GPU % (
        "shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448 core_count: 132 "
        "threads_per_core_limit: 2048 fpus_per_core: 128 memory_bandwidth: 3352320000000 "
        "l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84942979072 "
        "cuda_compute_capability { major: 9 }",
        "NVIDIA H100 80GB HBM3",
    ),
    "A100": EVERY_GPU % (
        "shared_memory_per_core: 167936 shared_memory_per_block_optin: 166912 core_count: 108 "
        "threads_per_core_limit: 2048 fpus_per_core: 64 memory_bandwidth: 1555200000000 "
        "l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 42505273344 "
        "cuda_compute_capability { major: 8 }",
        "NVIDIA A100-SXM4-40GB",
    ),
    "RTX_4090": EVERY_GPU % (
        "shared_memory_per_core: 102400 shared_memory_per_block_optin: 101376 core_count: 128 "
        "threads_per_core_limit: 1536 fpus_per_core: 128 memory_bandwidth: 1008096000000 "
        "l2_cache_size: 75497472 clock_rate_ghz: 2.52 device_memory_size: 25386352640 "
        "cuda_compute_capability { major: 8 minor: 9 }",
        "NVIDIA GeForce RTX 4090",
    ),
}  # fmt: skip


class Chip(NamedTuple):
    """A chip as a target of a compiler.

    Attributes:
        platform: "tpu" or "cuda".
        topology: The name of the smallest group of chips that the compiler knows, or of GPUS.
        gigahertz: The clock of a TPU, by which cycles become seconds. It follows from the peak
            that Google publishes and the size of the matrix units; None if that is not published.
        bandwidth: Bytes per second of a GPU's memory, by which traffic becomes seconds.
        instructions: Instructions per second of all schedulers of a GPU, each for 32 threads.
    """

    platform: str
    topology: str
    gigahertz: float | None = None
    bandwidth: float | None = None
    instructions: float | None = None


CHIPS = {
    "v5e": Chip("tpu", "v5e:2x2", gigahertz=1.5),
    "v4": Chip("tpu", "v4:2x2x1", gigahertz=1.05),
    "v5p": Chip("tpu", "v5p:2x2x1", gigahertz=1.75),
    "v6e": Chip("tpu", "v6e:2x2"),
    # 132 multiprocessors with 4 schedulers each, at 1.755 GHz.
    "H100": Chip("cuda", "H100", bandwidth=3.352e12, instructions=132 * 4 * 1.755e9),
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


def nvidia_programs() -> str:
    """Returns the folders of NVIDIA's packages with programs, as in PATH."""
    nvidia = importlib.util.find_spec("nvidia")
    roots = (nvidia and nvidia.submodule_search_locations) or ()
    return os.pathsep.join(str(path) for root in roots for path in Path(root).glob("*/bin"))


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
        changed |= {
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0",
            "PATH": os.pathsep.join([nvidia_programs(), os.environ["PATH"]]),
        }
    return {**os.environ, **changed}


def one_chip(chip: Chip) -> NamedSharding:
    """Returns the sharding that places arrays whole on one chip of this kind."""
    from jax.experimental import topologies

    if chip.platform == "cuda":
        import jax_plugins.xla_cuda13  # noqa: F401  # type: ignore[import-not-found]
        from jax._src.pallas.triton import gpu_info

        # Both would ask the machine's device, which is a CPU, for which GPU they compile.
        depthwise.kernels_for_cuda = lambda: depthwise_triton  # type: ignore[assignment]
        version = gpu_info.GpuVersion[chip.topology]
        gpu_info.registry["cpu"] = lambda: gpu_info.get_gpu_info_from_version(version)
        options: dict[str, Any] = {"target_config": GPUS[chip.topology], "topology": "1x1x1"}
        devices = topologies.get_topology_desc("gpu", platform="cuda", **options).devices
    else:
        devices = topologies.get_topology_desc(chip.topology, platform="tpu").devices
    return NamedSharding(Mesh(np.array(devices[:1]), ("chip",)), PartitionSpec())
