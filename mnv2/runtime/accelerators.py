"""The devices that JAX computes on here, and what is said if it cannot use an accelerator."""

import importlib.util
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jax

from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import warn

# What a driver puts into /dev for each accelerator, its name, and the extra that installs JAX for
# it.
DRIVERS = (
    ("nvidia[0-9]*", "NVIDIA GPU", "cuda13 or cuda12"),
    ("accel[0-9]*", "TPU", "tpu"),
)
NAMES = {"cuda": "NVIDIA GPU", "gpu": "GPU", "rocm": "AMD GPU", "tpu": "TPU"}


def describe(kinds: Iterable[str]) -> str:
    """Counts kinds of devices: `4 x TPU v5 lite`, or `cpu` for one CPU."""
    counts = Counter(kinds)
    return ", ".join(f"{n} x {kind}" if n > 1 else kind for kind, n in counts.items())


def find_devices(dev: Path = Path("/dev")) -> str:
    """Starts JAX and describes its devices, after a warning if it leaves out an accelerator.

    `dev` is the folder of the operating system's devices. Raises UserError if JAX_PLATFORMS names a
    platform that JAX cannot use here.
    """
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
    if jax.default_backend() == "cpu" and not wanted:
        _warn_of_unused(dev)
    return describe(kinds)


def _warn_of_unused(dev: Path) -> None:
    """Warns of an accelerator that the operating system has and JAX does not use."""
    for pattern, name, extras in DRIVERS:
        if name == "NVIDIA GPU" and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
            continue  # the user hides it
        if found := sorted(dev.glob(pattern)):
            installed = any(map(importlib.util.find_spec, _plugins(name)))
            remedy = (
                "its driver may be too old or out of order"
                if installed
                else f"JAX is installed without support for it: install the extra {extras}"
            )
            warn(
                f"this machine has {name}s ({found[0]}) that JAX cannot use, so the CPU does the "
                f"work; {remedy}, see docs/accelerators.md"
            )


def _plugins(name: str) -> tuple[str, ...]:
    """Returns the modules of JAX that support an accelerator."""
    return ("libtpu",) if name == "TPU" else ("jax_cuda12_plugin", "jax_cuda13_plugin")
