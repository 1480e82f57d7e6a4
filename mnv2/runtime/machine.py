"""What this process may use of its machine: cores, memory and GPUs. Nothing here starts JAX."""

import importlib.util
import math
import os
import shutil
import subprocess
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")  # the limits of the control groups that there are
OWN_GROUPS = Path("/proc/self/cgroup")  # the groups that this process is in
DEV = Path("/dev")
# The number of threads with which XLA computes on the CPU; by default it counts the cores.
THREADS = "NPROC"
WORKERS = "MNV2_WORKERS"  # an environment variable: how many processes share the machine


def cores(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Returns the number of cores that the process is bound to.

    At most what its container, its SLURM job or any control group around it has.
    """
    if hasattr(os, "sched_getaffinity"):
        available = len(os.sched_getaffinity(0))
    else:  # macOS cannot bind a process to cores
        available = os.cpu_count() or 1
    of_job = os.environ.get("SLURM_CPUS_PER_TASK", "")
    quotas = [_quota(group) for group in _groups(cgroup, own, "cpu")]
    limit = min(*quotas, int(of_job) if of_job.isdecimal() else math.inf)
    return max(1, math.ceil(min(available, limit)))


def threads() -> int:
    """Returns the number of threads with which XLA computes in this process."""
    chosen = os.environ.get(THREADS, "")
    return int(chosen) if chosen.isdecimal() and int(chosen) else cores()


def _groups(cgroup: Path, own: Path, controller: str) -> list[Path]:
    """Lists the control groups of this process that can limit it, up to the root of the container.

    `systemd-run` and SLURM put a process into a group of its own, which is limited, and whose path
    is in the file `own`. Groups of version 1 have a tree for each controller.
    """
    unified = (cgroup / "cgroup.controllers").exists() or not (cgroup / controller).is_dir()
    root = cgroup if unified else cgroup / controller
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8").splitlines()]
    except OSError:  # another operating system
        return [root]
    wanted = [path for _, of, path in lines if (not of if unified else controller in of.split(","))]
    inner = root / wanted[0].lstrip("/") if wanted else root
    return [group for group in (inner, *inner.parents) if group.is_relative_to(root)]


def _quota(group: Path) -> float:
    """Returns the cores that a control group may use on average; infinity without a limit."""
    try:
        if (unified := group / "cpu.max").exists():
            quota, period = unified.read_text(encoding="utf-8").split()
        else:
            quota = (group / "cpu.cfs_quota_us").read_text(encoding="utf-8")
            period = (group / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return float(quota) / float(period) if float(quota) > 0 else math.inf
    except (OSError, ValueError):  # no limit, or another operating system
        return math.inf


def free_memory(cgroup: Path = CGROUP, own: Path = OWN_GROUPS) -> int:
    """Returns the bytes that more processes can take without swapping, within all limits."""
    left = [_left_in(group) for group in _groups(cgroup, own, "memory")]
    return min(psutil.virtual_memory().available, *left)


def _left_in(group: Path) -> int:
    """Returns the bytes below a control group's limit; those of cached files count as free."""
    unified = (group / "memory.max").exists()
    names = ("memory.max", "memory.current") if unified else (
        "memory.limit_in_bytes", "memory.usage_in_bytes")  # fmt: skip
    cached = "inactive_file" if unified else "total_inactive_file"
    try:
        limit, used = (int((group / name).read_text(encoding="utf-8")) for name in names)
        lines = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
        counts = dict(line.split() for line in lines)
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
