"""Training that computes what 8 bits will make of a network (Jacob et al., arXiv 1712.05877).

Kernels and activations are rounded to the numbers that 8 bits can hold, and stay floating point.
Gradients pass the rounding as if it were not there (straight-through), except where a value lies
outside the range that 8 bits hold. The network knows nothing of it: its calls are intercepted.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jaxtyping import Array, Float

from mnv2.models import MobileNetV2
from mnv2.models.blocks import ConvBN, InvertedResidual
from mnv2.ops import relu6
from mnv2.training.step import AXIS

GRANULARITIES = ("channel", "tensor")  # what has a scale of its own
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
    return x + lax.stop_gradient(value - x)


class Rounding(nn.Module):
    """Rounds a tensor to 8 bits, between moving averages of its smallest and largest number.

    The averages are kept as batch norm keeps its own, with its `momentum`, and start with the first
    batch. Before it, nothing is rounded. The numbers of a batch are those of all devices.
    """

    momentum: float
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape"], train: bool) -> Float[Array, "*shape"]:
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
        if self.axis_name is None:
            return low, high
        return lax.pmin(low, self.axis_name), lax.pmax(high, self.axis_name)


@dataclasses.dataclass(frozen=True)
class FakeQuant:
    """A MobileNetV2 of ReLU6 and the paper's shortcut, as its integer form computes.

    It takes and gives what the network does; its variables also have the ranges of the tensors.

    granularity  channel or tensor: what of a kernel has a scale of its own
    """

    network: MobileNetV2
    granularity: str

    def __getattr__(self, name: str) -> Any:  # num_classes, dtype and so on
        return getattr(self.network, name)

    def clone(self, **fields: Any) -> "FakeQuant":
        return dataclasses.replace(self, network=self.network.clone(**fields))

    def init(self, *arguments: Any) -> Any:
        with nn.intercept_methods(functools.partial(self._rounds, False)):
            return self.network.init(*arguments)

    def apply(
        self, variables: Mapping[str, Any], images: Array, train: bool = False, **options: Any
    ) -> Any:
        params = self._rounded(variables["params"], variables["batch_stats"])
        with nn.intercept_methods(functools.partial(self._rounds, train)):
            return self.network.apply({**variables, "params": params}, images, train, **options)

    def _rounded(self, params: Mapping[str, Any], statistics: Mapping[str, Any]) -> dict[str, Any]:
        """Returns parameters whose kernels are rounded, as they are with batch norm folded."""
        if "kernel" not in params:
            return {
                name: self._rounded(value, statistics.get(name, {}))
                if isinstance(value, Mapping)
                else value
                for name, value in params.items()
            }
        if self.granularity == "channel":
            return {**params, "kernel": rounded_kernel(params["kernel"])}
        factor: Any = 1.0
        if "bn" in params:  # its factors differ between channels, so they are folded first
            deviation = jnp.sqrt(statistics["bn"]["var"] + self.network.conventions.bn_epsilon)
            factor = lax.stop_gradient(params["bn"]["scale"] / deviation)
            factor = jnp.where(factor == 0, 1, factor)
        kernel = rounded_kernel(params["kernel"] * factor, per_channel=False) / factor
        return {**params, "kernel": kernel}

    def _rounds(
        self, train: bool, call: Callable[..., Any], arguments: Any, options: Any, context: Any
    ) -> Any:
        """Calls a method of the network; rounds what goes into it and what comes out."""
        module, (x, *others) = context.module, arguments
        if context.method_name != "__call__":
            return call(*arguments, **options)

        def to_8_bits(x: Array, name: str) -> Array:
            conventions = self.network.conventions
            axis_name = None if conventions.axis_name is None else AXIS
            return Rounding(conventions.bn_momentum, axis_name, name=name)(x, train)

        if isinstance(module, MobileNetV2):
            return call(to_8_bits(x, "input_rounding"), *others, **options)
        if isinstance(module, nn.Dense):
            return to_8_bits(call(to_8_bits(x, "input_rounding")), "rounding")
        if isinstance(module, ConvBN) and module.of_relu6:
            # The depthwise layer would apply the ReLU6 of the expansion, whose result is rounded
            # here. A second ReLU6 would stop the gradient of what was rounded to 0.
            object.__setattr__(module, "of_relu6", False)
        y = call(x, *others, **options)
        if isinstance(module, ConvBN):
            return to_8_bits(relu6(y) if module.name == "expand" else y, "rounding")
        if isinstance(module, InvertedResidual) and y[0].shape == x.shape:
            return to_8_bits(y[0], "sum_rounding"), y[1]
        return y


def without_ranges(variables: Mapping[str, Any]) -> dict[str, Any]:
    flat = flatten_dict(variables)
    return unflatten_dict({path: x for path, x in flat.items() if path[-1] not in ("low", "high")})
