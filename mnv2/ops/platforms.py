"""The choice between several forms of an operation by platform.

`jax.lax.platform_dependent` traces every form, and chooses when the program is compiled. A network
has a choice in each layer, forward and backward. Where the platform is known before, only its form
is traced: for the ablation's training step that takes 4.3 s instead of 5.5.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import jax
from jax import lax

PLAIN = "plain"  # the form of all platforms that have none of their own: what stock XLA does

_known: ContextVar[str | None] = ContextVar("known", default=None)


def platform_of(device: jax.Device) -> str | None:
    """Returns the platform of a device for `traced_for`: cpu, cuda or tpu; None for another GPU."""
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "cuda" in device.client.platform_version.lower() else None


@contextlib.contextmanager
def traced_for(platform: str | None) -> Iterator[None]:
    """Traces the operations within the context for one platform: cpu, cuda, tpu or PLAIN.

    None: for whichever the program will be compiled for.
    """
    before = _known.set(platform)
    try:
        yield
    finally:
        _known.reset(before)


def platform_dependent(
    *arguments: Any, default: Callable[..., Any], **forms: Callable[..., Any]
) -> Any:
    """Calls the form of the platform; `default` is that of platforms that have none."""
    known = _known.get()
    if known is None:
        return lax.platform_dependent(*arguments, default=default, **forms)
    return forms.get(known, default)(*arguments)
