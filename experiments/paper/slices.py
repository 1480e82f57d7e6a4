"""Computes the inverted residual in little memory (MobileNetV2, section 5.1).

Between expansion and projection, a block processes every channel separately. It is therefore a sum
over slices of its expanded channels:

    F(x) = sum over i of  project_i(depthwise_i(expand_i(x)))

Only the expanded tensor of one slice needs to exist at a time. The multiply-adds and the result
stay the same.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.models.blocks import InvertedResidual
from mnv2.ops import Padding, depthwise_conv, explicit_padding, pointwise_conv, relu6


def in_slices(splits: int) -> AbstractContextManager[None]:
    """Lets each InvertedResidual that is applied within it compute itself as so many partial sums.

    Batch norm must be folded, the activation ReLU6, and the shortcut the paper's.
    """
    return nn.intercept_methods(functools.partial(_by_slices, splits))


def _by_slices(
    splits: int, call: Callable[..., Any], arguments: Any, options: Any, context: Any
) -> Any:
    block = context.module
    is_block = isinstance(block, InvertedResidual) and context.method_name == "__call__"
    if not is_block or splits == 1:
        return call(*arguments, **options)
    x, params = arguments[0], block.variables["params"]
    conv_bn: Any = block.conv_bn  # a partial call of ConvBN
    padding = explicit_padding(
        (x.shape[1], x.shape[2]), 3, block.stride, conv_bn.keywords["conventions"].padding
    )
    y = inverted_residual_by_slices(x, params, splits, block.stride, padding)
    y = relu6(y) if block.bottleneck == "relu6" else y
    return (y + x if block.shortcut == "bottleneck" and y.shape == x.shape else y), None


def inverted_residual_by_slices(
    x: Float[Array, "n h w k"],
    params: Mapping[str, Any],
    splits: int,
    stride: int,
    padding: Padding,
) -> Float[Array, "n h2 w2 k2"]:
    """Computes the block as `splits` partial sums, without its shortcut and output activation.

    `params` are the parameters of an InvertedResidual with batch norm folded: kernel and bias of
    `depthwise`, of `project` and, if the block expands, of `expand`. If `splits` does not divide
    the number of expanded channels, the last slice is filled with zeros.
    """
    channels = params["depthwise"]["kernel"].shape[-1]
    slice_channels = -(-channels // splits)
    missing = splits * slice_channels - channels

    def sliced(array: Array, axis: int) -> Array:
        """Splits one axis, and moves the slices to the front: splits ... slice_channels ..."""
        padded = jnp.pad(array, [(0, missing if i == axis else 0) for i in range(array.ndim)])
        shape = (*array.shape[:axis], splits, slice_channels, *array.shape[axis + 1 :])
        return jnp.moveaxis(padded.reshape(shape), axis, 0)

    slices = {
        name: {
            key: sliced(value, 2 if (name, key) == ("project", "kernel") else value.ndim - 1)
            for key, value in layer.items()
            if (name, key) != ("project", "bias")
        }
        for name, layer in params.items()
    }
    slices = jax.tree.map(lambda value: value.astype(x.dtype), slices)
    padded_x = x if "expand" in params else jnp.pad(x, ((0, 0),) * 3 + ((0, missing),))

    def add_slice(total: Array, index_and_layers: tuple[Array, Any]) -> tuple[Array, None]:
        index, layers = index_and_layers
        if "expand" in layers:
            wide = pointwise_conv(x, layers["expand"]["kernel"]) + layers["expand"]["bias"]
        else:
            wide = lax.dynamic_slice_in_dim(padded_x, index * slice_channels, slice_channels, 3)
        depthwise = layers["depthwise"]
        wide = depthwise_conv(wide, depthwise["kernel"], stride, padding, "expand" in layers)
        wide = relu6(wide + depthwise["bias"])
        return total + pointwise_conv(wide, layers["project"]["kernel"]), None

    height, width = (-(-length // stride) for length in x.shape[1:3])
    bias = params["project"]["bias"].astype(x.dtype)
    total = jnp.broadcast_to(bias, (len(x), height, width, len(bias)))
    return lax.scan(add_slice, total, (jnp.arange(splits), slices))[0]
