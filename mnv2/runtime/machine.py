"""What this process may use of its machine: cores, memory, GPUs, and what JAX finds and keeps."""

import ctypes
import hashlib
import importlib.util
import math
import os
import platform as system
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import caches, check_writable
from mnv2.runtime.terminal import warn_once

NAMES = {"cuda": "NVIDIA GPU", "gpu": "GPU", "rocm": "AMD GPU", "tpu": "TPU"}
CGROUP = Path("/sys/fs/cgroup")  # the limits of the control groups that there are
OWN_GROUPS = Path("/proc/self/cgroup")  # the groups that this process is in
DEV = Path("/dev")
CPU_INFO = Path("/proc/cpuinfo")
# The number of threads with which XLA computes on the CPU; by default it counts the cores.
THREADS = "NPROC"
WORKERS = "MNV2_WORKERS"  # an environment variable: how many processes share the machine
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
# A training step allocates and frees every intermediate tensor. By default glibc maps fresh pages
# of 4 KiB for each, and the page faults take a third of the step: MobileNetV2 0.35 on 28x28 images,
# batch 128, two cores: 62 ms per step, and 39 ms with these settings, which glibc reads when a
# process starts. Threads keep memory areas of their own: with one area for all (arena_max), a step
# is no faster, and MobileNetV2 at 224 pixels, batch 32, takes 4.1 to 6.2 GiB instead of 2.5.
TUNABLES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=17179869184:"
    "glibc.malloc.trim_threshold=17179869184"
}


def keep_freed_memory() -> None:
    """Lets glibc keep the memory that a step frees, instead of mapping fresh pages for each tensor.

    For commands that are no copies of another one, which `huge_pages` is for. Nothing elsewhere.
    """
    if system.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


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


def platform() -> str:
    """Returns what JAX will compute on here, as far as can be told without starting it.

    "cpu", "cuda", "tpu", or the first entry of JAX_PLATFORMS.
    """
    if chosen := os.environ.get("JAX_PLATFORMS", "").split(",")[0]:
        return "cuda" if chosen == "gpu" else chosen
    if _has("jax_cuda13_plugin", "jax_cuda12_plugin") and gpus():
        return "cuda"
    return "tpu" if _has("libtpu") and chips() else "cpu"


def chips() -> list[str]:
    """Returns the numbers of the TPU chips here, as TPU_VISIBLE_CHIPS has them."""
    found = list(DEV.glob("accel[0-9]*")) or list((DEV / "vfio").glob("[0-9]*"))
    if (visible := os.environ.get("TPU_VISIBLE_CHIPS")) is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    return [str(number) for number in range(len(found))]


def huge_pages() -> dict[str, str]:
    """Returns the environment variables with which a process allocates memory in huge pages.

    {} where they do not help (without glibc, or huge pages on request, or with an accelerator), and
    if GLIBC_TUNABLES is set, even if it is empty.
    """
    accelerator = any(DEV.glob("nvidia[0-9]*")) or any(DEV.glob("accel*"))
    if TUNABLES.keys() & os.environ.keys() or accelerator or system.libc_ver()[0] != "glibc":
        return {}
    try:
        helps = "[never]" not in HUGE_PAGES.read_text(encoding="utf-8")
    except OSError:  # no such setting, or not permitted to read it
        return {}
    return TUNABLES if helps else {}


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


def describe_devices(kinds: Iterable[str]) -> str:
    """Counts kinds of devices: `4 x TPU v5 lite`, or `cpu` for one CPU."""
    counts = Counter(kinds)
    return ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in counts.items())


def find_devices() -> str:
    """Starts JAX, which warns of an accelerator that it cannot use, and describes its devices.

    Raises UserError if JAX_PLATFORMS names a platform that JAX cannot use here.
    """
    import jax  # the rest of this module does without

    wanted = jax.config.jax_platforms
    try:
        kinds = [device.device_kind for device in jax.devices()]
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        first = (wanted or "").split(",")[0]
        raise UserError(
            f"there is no {NAMES.get(first, first)} here that JAX can use, and JAX_PLATFORMS is "
            f"{wanted}: see docs/accelerators.md, or leave JAX_PLATFORMS unset ({reason[:200]})"
        ) from error
    return describe_devices(kinds)


def keep_compiled_programs() -> None:
    """Lets JAX keep its compiled programs in a folder from one command to the next.

    Compiling a training step of MobileNetV2 takes about ten seconds, and every arm of a sweep has
    its own step. JAX_COMPILATION_CACHE_DIR, or JAX's own setting, chooses another folder. Nothing
    is kept, after a warning, if nothing can be written there.
    """
    import jax  # the rest of this module does without

    # By default those that compile in less than a second are not kept, as a small network is.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    chosen = jax.config.jax_compilation_cache_dir
    if not chosen:
        if folder := caches():
            of_processor = folder / "compiled" / _processor()
            jax.config.update("jax_compilation_cache_dir", str(of_processor))
    elif "://" not in chosen:
        try:
            Path(chosen).mkdir(parents=True, exist_ok=True)
            check_writable(Path(chosen))
        except OSError as error:  # JAX would say so again for every program
            warn_once(f"compiled programs are not kept: cannot write to {chosen}: {error.strerror}")
            jax.config.update("jax_compilation_cache_dir", None)


def _processor() -> str:
    """Returns a name for this kind of processor.

    A program for another kind may not run, and several machines may share a home folder.
    """
    flags = system.machine()
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or not permitted
        lines = []
        flags += system.processor()
    flags += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
