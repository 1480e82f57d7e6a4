"""Compiled programs, kept on disk from one command to the next.

Compiling a training step of MobileNetV2 takes about ten seconds, and every arm of a sweep has its
own step.
"""

import hashlib
import platform
from pathlib import Path

import jax

from mnv2.runtime.files import caches

CPU_INFO = Path("/proc/cpuinfo")


def enable() -> Path:
    """Lets JAX store its compiled programs in a folder and reuse them; returns the folder.

    JAX_COMPILATION_CACHE_DIR, or JAX's own setting, chooses another folder.
    """
    chosen = jax.config.jax_compilation_cache_dir
    if chosen:
        return Path(chosen)
    folder = caches() / "compiled" / _processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def _processor() -> str:
    """Returns a name for this kind of processor.

    A program for another kind may not run, and several machines may share a home folder.
    """
    flags = platform.machine()
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text().splitlines()
        flags += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
