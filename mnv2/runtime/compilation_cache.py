"""Compiled programs, kept on disk from one command to the next.

Compiling a training step of MobileNetV2 takes about ten seconds, and every arm of a sweep has its
own step.
"""

import hashlib
import platform
from pathlib import Path

import jax

from mnv2.runtime.files import caches, check_writable, warn_once

CPU_INFO = Path("/proc/cpuinfo")


def enable() -> str | None:
    """Lets JAX store its compiled programs in a folder and reuse them; returns the folder.

    JAX_COMPILATION_CACHE_DIR, or JAX's own setting, chooses another folder. Returns None, after a
    warning, if nothing can be written there.
    """
    configured = jax.config.jax_compilation_cache_dir
    if configured:
        return _checked(configured)
    folder = caches()
    if folder is None:
        return None
    ours = str(folder / "compiled" / _processor())
    jax.config.update("jax_compilation_cache_dir", ours)
    return ours


def _checked(configured: str) -> str | None:
    """Returns the folder that the user chose; JAX would name it again for every program."""
    if "://" not in configured:
        try:
            Path(configured).mkdir(parents=True, exist_ok=True)
            check_writable(Path(configured))
        except OSError as error:
            warn_once(
                f"compiled programs are not kept: cannot write to {configured}: {error.strerror}"
            )
            jax.config.update("jax_compilation_cache_dir", None)
            return None
    return configured


def _processor() -> str:
    """Returns a name for this kind of processor.

    A program for another kind may not run, and several machines may share a home folder.
    """
    flags = platform.machine()
    try:
        lines = CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux, or not permitted
        lines = []
        flags += platform.processor()
    flags += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return hashlib.sha256(flags.encode()).hexdigest()[:12]
