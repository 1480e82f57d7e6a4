"""Training that computes what 8 bits will make of a network (Jacob et al., arXiv 1712.05877).

Kernels and activations are rounded to the numbers that 8 bits can hold, and stay floating point.
Gradients pass the rounding as if it were not there (straight-through), except where a value lies
outside the range that 8 bits hold.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops import Axis, DeviceGroup

GRANULARITIES = ("channel", "tensor")  # what has a scale of its own: see ConvBN
LEVELS = 255  # steps between the smallest and the largest of the 256 numbers
LARGEST = 127  # of a kernel, whose numbers are symmetric


def rounded_kernel(
    kernel: Float[Array, "*inputs channels"], *, per_channel: bool = True
) -> Float[Array, "*inputs channels"]:
    """Rounds a kernel to 8 bits, with a scale for each output channel, or with one for all.

    In the first case a factor per output channel changes the scales only. So the result is also
    the kernel with batch norm folded, rounded and unfolded again: nothing has to be folded.
    """
    axes = tuple(range(kernel.ndim - 1)) if per_channel else None
    largest = jnp.max(jnp.abs(kernel), axis=axes, keepdims=True)
    scale = lax.stop_gradient(jnp.where(largest > 0, largest / LARGEST, 1))
    return _straight_through(kernel, jnp.round(kernel / scale) * scale)


def rounded(
    x: Float[Array, "*shape"], low: Float[Array, "1"], high: Float[Array, "1"]
) -> Float[Array, "*shape"]:
    """Rounds `x` to 256 equidistant numbers, zero among them, from about `low` to about `high`."""
    low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
    scale = (high - low) / LEVELS
    zero = jnp.round(-low / scale)
    bounded = jnp.clip(x, -zero * scale, (LEVELS - zero) * scale)
    return _straight_through(bounded, jnp.round(bounded / scale) * scale)


def _straight_through(
    x: Float[Array, "*shape"], value: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns `value`, with the gradient of `x`."""
    return x + lax.stop_gradient(value - x)


class Rounding(nn.Module):
    """Rounds a tensor to 8 bits, between moving averages of its smallest and largest number.

    The averages are kept as batch norm keeps its own, with its `momentum`, and start with the first
    batch. Before it, nothing is rounded. The numbers of a batch are those of all devices of
    `axis_name`.
    """

    momentum: float = 0.99
    axis_name: Axis = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
        # Of one number each, since files of weights have no scalars.
        low = self.variable("batch_stats", "low", jnp.zeros, (1,), jnp.float32)
        high = self.variable("batch_stats", "high", jnp.zeros, (1,), jnp.float32)
        if train and not self.is_initializing():
            new = self._bounds(lax.stop_gradient(x.astype(jnp.float32)))
            first = low.value == high.value
            for average, bound in zip((low, high), new, strict=True):
                moved = self.momentum * average.value + (1 - self.momentum) * bound
                average.value = jnp.where(first, bound, moved)
        known = high.value > low.value
        of_float32 = rounded(x.astype(jnp.float32), low.value, jnp.where(known, high.value, 1))
        return jnp.where(known, of_float32, x).astype(x.dtype)

    def _bounds(self, x: Float[Array, "*shape"]) -> tuple[Float[Array, "1"], Float[Array, "1"]]:
        low, high = jnp.min(x)[None], jnp.max(x)[None]
        axis = self.axis_name
        if axis is None:
            return low, high
        name = axis.axis_name if isinstance(axis, DeviceGroup) else axis
        return lax.pmin(low, name), lax.pmax(high, name)


type Factory = Callable[..., Rounding]


def rounding_of(network: Any) -> Factory | None:
    """Returns what makes the `Rounding`s of a network, from their names; None if it has none.

    It uses the fields quantized, bn_momentum and axis_name of the network.
    """
    if network.quantized == "none":
        return None
    return functools.partial(Rounding, network.bn_momentum, network.axis_name)


def rounded_by(rounding: Factory | None, name: str, x: Array, train: bool) -> Array:
    """Rounds a tensor with a new `Rounding` of that name; returns it as it is for None."""
    return x if rounding is None else rounding(name=name)(x, train)


def rounded_dot_general(
    x: jax.Array, kernel: jax.Array, *arguments: Any, per_channel: bool, **options: Any
) -> jax.Array:
    """Computes `lax.dot_general` of `x` and a rounded kernel: for `nn.Dense`."""
    kernel = rounded_kernel(kernel, per_channel=per_channel)
    return lax.dot_general(x, kernel, *arguments, **options)
