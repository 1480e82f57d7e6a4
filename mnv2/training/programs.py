"""Compiled programs stay in memory for the other seeds of an arm; here they are dropped in time.

Each arm has programs of its own, which take 200 MB or more. A process that executes one arm after
another would fill the memory: after 26 of them it had 9 GB, and the compiler died.
"""

import contextlib
import ctypes
import gc

import jax
import psutil

from mnv2.runtime.machine import free_memory
from mnv2.training import state, steps


def drop_if_large() -> bool:
    """Drops all compiled programs if this process has grown to half of the memory that is free.

    Programs that are needed again are read from the cache on the disk. Returns whether they were
    dropped.
    """
    _return_memory()
    if psutil.Process().memory_info().rss <= free_memory() / 2:
        return False
    steps.forget()
    state.forget()
    jax.clear_caches()
    gc.collect()
    _return_memory()
    return True


def _return_memory() -> None:
    """Returns what was freed to the system: after a run 350 MB, which glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
