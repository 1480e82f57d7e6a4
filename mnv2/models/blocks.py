"""The four building blocks of the networks, side by side.

    ConvBN              conv k x k -> batch norm -> activation
    SeparableBlock      3x3 depthwise -> 1x1                      MobileNetV1 (and Xception's order)
    InvertedResidual    1x1 widen -> 3x3 depthwise -> 1x1 narrow, linear          MobileNetV2
    Hourglass           1x1 narrow -> 3x3 standard -> 1x1 widen                   ResNet

A block takes `conv_bn`, which is ConvBN with the conventions of a network (padding, batch norm
constants, type) already filled in. Without it, a block uses the defaults of ConvBN. Parameters are
stored under the names of submodules.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.models.batch_norm import BatchNorm
from mnv2.models.rounding import Factory, rounded_by, rounded_kernel, rounding_of
from mnv2.models.split import inverted_residual_by_slices
from mnv2.ops import (
    Axis,
    conv,
    depthwise_conv,
    explicit_padding,
    is_faster_fused,
    pointwise_conv,
    relu6,
)
from mnv2.runtime.errors import UserError

Activation = Callable[[Array], Array]
ConvBNFactory = Callable[..., nn.Module]

# He et al. 2015, by fan-out. A depthwise filter feeds k*k outputs, whatever the number of
# channels. Flax calls this number the fan-in of the (k, k, 1, c) kernel.
CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
DEPTHWISE_INIT = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


def linear(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns `x` unchanged: the activation function of a linear layer."""
    return x


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Rounds to a multiple of `divisor` that is at least `divisor` and 90 % of `channels`.

    This is the rule of `make_divisible` in slim, with which every published MobileNetV2 was
    trained.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation.

    features     output channels
    depthwise    every channel has its own filter; `features` must equal the input channels
    of_relu6     convolves relu6(x), faster than in two steps; for depthwise convolutions only
    batch_norm   False leaves batch norm out
    padding      same (TensorFlow) or symmetric (PyTorch)
    bn_frozen    training uses the running statistics of batch norm and does not change them
    quantized    channel or tensor rounds the kernel, with a scale for each output channel or for
                 all of it, and the result to what 8 bits can hold (`mnv2.models.rounding`)
    axis_name    device axis over which batch statistics are computed together

    Parameters with batch norm folded (`mnv2.models.inference`) have a bias instead of batch norm.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False
    of_relu6: bool = False
    activation: Activation = relu6
    batch_norm: bool = True
    padding: str = "same"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_frozen: bool = False
    quantized: str = "none"
    axis_name: Axis = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        y = self._activated(x, train)
        return rounded_by(rounding_of(self), "rounding", y, train)

    def _activated(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h2 w2 c2"]:
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param(
            "kernel",
            DEPTHWISE_INIT if self.depthwise else CONV_INIT,
            (self.kernel_size, self.kernel_size, inputs, self.features),
            jnp.float32,
        )
        if self.quantized == "channel":
            kernel = rounded_kernel(kernel)
        elif self.quantized == "tensor":  # batch norm's factors differ, so they are folded first
            factor = self._factor()
            kernel = rounded_kernel(kernel * factor, per_channel=False) / factor
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        normalize = BatchNorm(
            self.bn_momentum, self.bn_epsilon, self.axis_name, self.dtype, name="bn"
        )
        if self.has_variable("params", "bias"):  # batch norm is folded into the parameters
            x = self._convolve(x, kernel) + self.get_variable("params", "bias").astype(self.dtype)
        elif not self.batch_norm:
            x = self._convolve(x, kernel)
        elif train and not self.bn_frozen and self._fuses(inputs):
            x = normalize(x, True, kernel)
        else:
            bounded = self.activation is relu6
            x = self._convolve(x, kernel)
            x = normalize(x, train and not self.bn_frozen, then_relu6=bounded)
            if bounded:  # batch norm has done it
                return x
        return self.activation(x)

    def _factor(self) -> Array | float:
        """Returns what batch norm multiplies each channel by in evaluation; 1 without it."""
        params, statistics = (self.variables.get(kind, {}) for kind in ("params", "batch_stats"))
        if "bn" not in params:
            return 1.0
        scale, var = params["bn"]["scale"], statistics["bn"]["var"]
        factor = lax.stop_gradient(scale * lax.rsqrt(var + self.bn_epsilon))
        return jnp.where(factor == 0, 1, factor)

    @property
    def _pointwise(self) -> bool:
        return not self.depthwise and self.kernel_size == 1 and self.stride == 1

    def _fuses(self, inputs: int) -> bool:
        return self._pointwise and is_faster_fused(inputs, self.features)

    def _convolve(
        self, x: Float[Array, "n h w c"], kernel: Float[Array, "k k c_group d"]
    ) -> Float[Array, "n h2 w2 d"]:
        size = (x.shape[1], x.shape[2])
        padding = explicit_padding(size, self.kernel_size, self.stride, self.padding)
        if self.depthwise:
            return depthwise_conv(x, kernel, self.stride, padding, self.of_relu6)
        if self._pointwise:
            return pointwise_conv(x, kernel)
        return conv(x, kernel, self.stride, padding)


class SeparableBlock(nn.Module):
    """MobileNetV1's depthwise separable convolution (arXiv 1704.04861, section 3.1, figure 3).

    It costs 1/features + 1/9 of the multiply-adds of a standard 3x3 convolution, where `features`
    is the number of output channels. With `xception`, there is no batch norm and no activation
    between the depthwise and the pointwise convolution, as in Xception (arXiv 1610.02357,
    section 3). With `shortcut`, which V1 does not have, the input is added before the last
    activation if it has the shape of the output. `rounding` rounds such sums to 8 bits, if
    `conv_bn` rounds the results of layers.
    """

    features: int
    stride: int = 1
    xception: bool = False
    shortcut: bool = False
    activation: Activation = relu6  # of that sum; the other ones are those of `conv_bn`
    rounding: Factory | None = None
    conv_bn: ConvBNFactory = ConvBN

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        depthwise = functools.partial(
            self.conv_bn, x.shape[-1], 3, self.stride, depthwise=True, name="depthwise"
        )
        if self.xception:
            y = depthwise(activation=linear, batch_norm=False)(x, train)
        else:
            y = depthwise()(x, train)
        pointwise = functools.partial(self.conv_bn, self.features, 1, name="pointwise")
        if self.shortcut and x.shape == (*y.shape[:-1], self.features):
            total = self.activation(x + pointwise(activation=linear)(y, train))
            return rounded_by(self.rounding, "sum_rounding", total, train)
        return pointwise()(y, train)


class InvertedResidual(nn.Module):
    """MobileNetV2's bottleneck residual block (arXiv 1801.04381, table 1).

    n h w k  --1x1-->  n h w tk  --3x3 depthwise, stride s-->  n h/s w/s tk  --1x1-->  n h/s w/s k'

    features    output channels k'
    expansion   t; there is no expansion layer if t = 1
    activation  of the wide tensors: ReLU6 (the paper) or another function
    bottleneck  activation of the narrow output: linear (the paper) or relu6 (figure 6a)
    shortcut    figure 6b. bottleneck adds the input to the output if both have the same shape.
                expansion adds `previous`, the expanded tensor of the previous block, to the
                expanded tensor of this block before its ReLU6, if both have the same shape. none
                adds nothing. The first two add at the same positions of a network.
    splits      number of partial sums, over slices of the expanded channels, as which the block is
                computed (section 5.1, `mnv2.models.split`). A number above 1 is for inference with
                batch norm folded only
    rounding    what rounds sums to 8 bits, if `conv_bn` rounds the results of layers

    Returns the output and the expanded tensor. The latter is None if `splits` is above 1.
    """

    features: int
    stride: int = 1
    expansion: float = 6
    activation: Activation = relu6
    bottleneck: str = "linear"
    shortcut: str = "bottleneck"
    splits: int = 1
    padding: str = "same"
    rounding: Factory | None = None
    conv_bn: ConvBNFactory = ConvBN

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w k"],
        train: bool = False,
        previous: Float[Array, "n h0 w0 tk0"] | None = None,
    ) -> tuple[Float[Array, "n h2 w2 k2"], Float[Array, "n h w tk"] | None]:
        narrow = {"linear": linear, "relu6": relu6}[self.bottleneck]
        if self.splits > 1 and not self.is_initializing():
            y = narrow(self._by_slices(x))
            return (y + x if self.shortcut == "bottleneck" and y.shape == x.shape else y), None
        expanded, expands = x, self.expansion != 1
        # The depthwise layer applies the ReLU6 of the expanded tensor, unless that tensor is the
        # input, or is rounded: what is rounded is the result of the activation.
        fused = expands and self.activation is relu6 and self.rounding is None
        activation = linear if fused else self.activation
        if expands:
            wide = make_divisible(x.shape[-1] * self.expansion)
            added = previous if self.shortcut == "expansion" else None
            if added is not None and added.shape != (*x.shape[:-1], wide):
                added = None
            first = activation if added is None else linear
            expanded = self.conv_bn(wide, 1, activation=first, name="expand")(x, train)
            if added is not None:
                expanded = self._sum(expanded, added, train, activation)
        y = self.conv_bn(
            expanded.shape[-1],
            3,
            self.stride,
            depthwise=True,
            of_relu6=fused,
            activation=self.activation,
            name="depthwise",
        )(expanded, train)
        if fused:
            expanded = relu6(expanded)
        y = self.conv_bn(self.features, 1, activation=narrow, name="project")(y, train)
        if self.shortcut == "bottleneck" and y.shape == x.shape:
            y = self._sum(y, x, train, linear)
        return y, expanded

    def _sum(self, x: Array, y: Array, train: bool, activation: Activation) -> Array:
        """Returns the activation of a sum, rounded if anything is."""
        total = activation(x + y)
        return rounded_by(self.rounding, "sum_rounding", total, train)

    def _by_slices(self, x: Float[Array, "n h w k"]) -> Float[Array, "n h2 w2 k2"]:
        params = self.variables["params"]
        unlike = self.shortcut == "expansion" or self.activation is not relu6
        if "bias" not in params["depthwise"] or unlike:
            raise UserError(
                "splits are for inference with batch norm folded (mnv2.models.for_inference), "
                "with ReLU6 and without shortcuts between expansions"
            )
        padding = explicit_padding((x.shape[1], x.shape[2]), 3, self.stride, self.padding)
        return inverted_residual_by_slices(x, params, self.splits, self.stride, padding)


class Hourglass(nn.Module):
    """ResNet's bottleneck block (arXiv 1512.03385, figure 5): narrow, convolve, widen, add.

    The 3x3 convolution is a standard convolution with features/4 input and output channels, and
    has the stride. If input and output differ in shape, the shortcut is a 1x1 convolution.
    `rounding` rounds sums to 8 bits, if `conv_bn` rounds the results of layers.
    """

    features: int
    stride: int = 1
    rounding: Factory | None = None
    conv_bn: ConvBNFactory = ConvBN

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        narrow = max(1, self.features // 4)
        y = self.conv_bn(narrow, 1, activation=jax.nn.relu, name="narrow")(x, train)
        y = self.conv_bn(narrow, 3, self.stride, activation=jax.nn.relu, name="convolve")(y, train)
        y = self.conv_bn(self.features, 1, activation=linear, name="widen")(y, train)
        if y.shape != x.shape:
            x = self.conv_bn(self.features, 1, self.stride, activation=linear, name="shortcut")(
                x, train
            )
        total = jax.nn.relu(x + y)
        return rounded_by(self.rounding, "sum_rounding", total, train)
