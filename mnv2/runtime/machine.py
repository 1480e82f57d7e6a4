"""What this process may use of its machine: cores, memory and GPUs. Nothing here starts JAX."""

import importlib.util
import math
import os
import shutil
import subprocess
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # the limits of the container that this process is in
DEV = Path("/dev")
# The number of threads with which XLA computes on the CPU; by default it counts the cores.
THREADS = "NPROC"
WORKERS = "MNV2_WORKERS"  # an environment variable: how many processes share the machine


def cores(cgroup: Path = CGROUP) -> int:
    """Returns the number of cores that the process is bound to.

    At most what its container or its SLURM job has.
    """
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:  # macOS cannot bind a process to cores
        available = os.cpu_count() or 1
    of_job = os.environ.get("SLURM_CPUS_PER_TASK", "")
    limit = min(_quota(cgroup), int(of_job) if of_job.isdecimal() else math.inf)
    return max(1, math.ceil(min(available, limit)))


def threads() -> int:
    """Returns the number of threads with which XLA computes in this process."""
    chosen = os.environ.get(THREADS, "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else cores()


def _quota(cgroup: Path) -> float:
    """Returns the cores that a container may use on average; infinity without a limit."""
    try:
        if (unified := cgroup / "cpu.max").exists():
            quota, period = unified.read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no limit, or another operating system
        return math.inf


def free_memory(cgroup: Path = CGROUP) -> int:
    """Returns the bytes that more processes can take without swapping, within the container."""
    return min(psutil.virtual_memory().available, _left_in_container(cgroup))


def _left_in_container(cgroup: Path) -> int:
    """Returns the bytes below a container's limit; those of cached files count as free."""
    unified = (cgroup / "memory.max").exists()
    folder = cgroup if unified else cgroup / "memory"
    names = ("memory.max", "memory.current") if unified else (
        "memory.limit_in_bytes", "memory.usage_in_bytes")  # fmt: skip
    cached = "inactive_file" if unified else "total_inactive_file"
    try:
        limit, used = (int((folder / name).read_text()) for name in names)
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(counts[cached]))
    except (OSError, ValueError, KeyError):  # no limit
        return 1 << 62


def memory_of(process: int) -> int:
    """Returns the bytes of memory that a process has now; 0 if it has ended."""
    try:
        return psutil.Process(process).memory_info().rss
    except psutil.Error:
        return 0


def platform() -> str:
    """Returns what JAX will compute on here, as far as can be told without starting it.

    "cpu", "cuda", "tpu", or the first entry of JAX_PLATFORMS.
    """
    if chosen := os.environ.get("JAX_PLATFORMS", "").split(",")[0]:
        return "cuda" if chosen == "gpu" else chosen
    if _has("jax_cuda13_plugin", "jax_cuda12_plugin") and gpus():
        return "cuda"
    if _has("libtpu") and any(DEV.glob("accel[0-9]*")):
        return "tpu"
    return "tpu" if _has("libtpu") and any((DEV / "vfio").glob("[0-9]*")) else "cpu"


def _has(*modules: str) -> bool:
    return any(importlib.util.find_spec(module) for module in modules)


def gpus() -> list[str]:
    """Returns the names that CUDA_VISIBLE_DEVICES has, or can have, for the NVIDIA GPUs here.

    CUDA counts from 0 what this machine or container has: in a container that has only
    /dev/nvidia3, it is 0.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        names = [name.strip() for name in visible.split(",")]
        # CUDA ignores what comes after the first name that it does not know.
        return names[: names.index("-1")] if "-1" in names else [name for name in names if name]
    found = len(list(DEV.glob("nvidia[0-9]*")))
    if not found and shutil.which("nvidia-smi"):  # WSL has no such files
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        found = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    return [str(number) for number in range(found)]
