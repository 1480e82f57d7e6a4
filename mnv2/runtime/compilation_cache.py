"""Compiled programs, kept on the disk from one command to the next.

Compiling a training step of MobileNetV2 takes some ten seconds, and each arm of a sweep has its
own.
"""

import hashlib
import platform
from pathlib import Path

import jax

from mnv2.runtime.files import caches

CPU_INFO = Path("/proc/cpuinfo")


def remember() -> Path:
    """Has JAX keep what it compiles, and take from there what it knows; returns the folder.

    Whoever sets JAX_COMPILATION_CACHE_DIR, or JAX's own setting, decides where.
    """
    chosen = jax.config.jax_compilation_cache_dir
    if chosen:
        return Path(chosen)
    folder = caches() / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """Of this kind of processor: programs for another may not run, and home folders are shared."""
    flags = platform.machine()
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text().splitlines()
        flags += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
