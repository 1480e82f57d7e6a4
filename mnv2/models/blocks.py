"""The four building blocks of the networks, side by side.

    ConvBN              conv k x k -> batch norm -> activation
    SeparableBlock      3x3 depthwise -> 1x1                      MobileNetV1 (and Xception's order)
    InvertedResidual    1x1 widen -> 3x3 depthwise -> 1x1 narrow, linear          MobileNetV2
    Hourglass           1x1 narrow -> 3x3 standard -> 1x1 widen                   ResNet

A block takes `conv_bn`, which is ConvBN with the conventions and the activation of a network
already filled in. Without it, a block uses the defaults of ConvBN. Parameters are stored under the
names of submodules.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.models.batch_norm import BatchNorm
from mnv2.ops import (
    Axis,
    DepthwiseOptions,
    conv,
    depthwise_and_normalize,
    depthwise_conv,
    expand_and_normalize,
    explicit_padding,
    is_faster_fused,
    normalize_batch,
    pointwise_conv,
    relu6,
)

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


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What the layers of a network have in common, and published implementations do differently.

    padding      same (TensorFlow) or symmetric (PyTorch)
    bn_momentum  share of the old value in the running statistics of batch norm
    bn_epsilon   added to the variance
    bn_frozen    training uses the running statistics of batch norm and does not change them
    axis_name    device axis over which batch statistics are computed together
    dtype        type of the computation; parameters, statistics and logits are at least float32
    """

    padding: str = "same"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_frozen: bool = False
    axis_name: Axis = None
    dtype: Any = jnp.float32


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, activation.

    features     output channels
    depthwise    every channel has its own filter; `features` must equal the input channels
    of_relu6     convolves relu6(x), faster than in two steps; for depthwise convolutions only
    batch_norm   False leaves batch norm out

    Parameters with batch norm folded (`mnv2.models.inference`) have a bias instead of batch norm.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    depthwise: bool = False
    of_relu6: bool = False
    activation: Activation = relu6
    batch_norm: bool = True
    conventions: Conventions = Conventions()

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n h2 w2 c2"]:
        inputs = 1 if self.depthwise else x.shape[-1]
        kernel = self.param(
            "kernel",
            DEPTHWISE_INIT if self.depthwise else CONV_INIT,
            (self.kernel_size, self.kernel_size, inputs, self.features),
            jnp.float32,
        )
        conventions, dtype = self.conventions, self.conventions.dtype
        x, kernel = x.astype(dtype), kernel.astype(dtype)
        batch_norm = BatchNorm(
            self.features,
            conventions.bn_momentum,
            conventions.bn_epsilon,
            conventions.axis_name,
            dtype,
            name="bn",
        )
        trains = train and not conventions.bn_frozen
        if self.has_variable("params", "bias"):  # batch norm is folded into the parameters
            x = self._convolve(x, kernel) + self.get_variable("params", "bias").astype(dtype)
        elif not self.batch_norm:
            x = self._convolve(x, kernel)
        elif trains:
            return batch_norm(x, True, functools.partial(self._convolve_and_normalize, kernel))
        else:
            x = batch_norm(self._convolve(x, kernel), False)
        return self.activation(x)

    def _convolve(
        self, x: Float[Array, "n h w c"], kernel: Float[Array, "k k c_group d"]
    ) -> Float[Array, "n h2 w2 d"]:
        if self.depthwise:
            return depthwise_conv(x, kernel, *self._options(x))
        if self._pointwise:
            return pointwise_conv(x, kernel)
        return conv(x, kernel, self.stride, self._options(x).padding)

    def _convolve_and_normalize(
        self, kernel: Float[Array, "k k c_group d"], x: Float[Array, "n h w c"], *constants: Any
    ) -> tuple[Float[Array, "n h2 w2 d"], Float[Array, " d"], Float[Array, " d"]]:
        """Returns the output in training, and the mean and variance before batch norm.

        `constants` are those of batch norm: scale, bias, epsilon and axis.
        """
        then_relu6 = self.activation is relu6
        if self.depthwise:
            options = self._options(x)
            y, mean, var = depthwise_and_normalize(x, kernel, *constants, options, then_relu6)
        elif self._pointwise and is_faster_fused(x.shape[-1], self.features):
            y, mean, var = expand_and_normalize(x, kernel, *constants)
            then_relu6 = False
        else:
            y, mean, var = normalize_batch(self._convolve(x, kernel), *constants, then_relu6)
        return y if then_relu6 else self.activation(y), mean, var

    @property
    def _pointwise(self) -> bool:
        return not self.depthwise and self.kernel_size == 1 and self.stride == 1

    def _options(self, x: Float[Array, "n h w c"]) -> DepthwiseOptions:
        size, padding = (x.shape[1], x.shape[2]), self.conventions.padding
        explicit = explicit_padding(size, self.kernel_size, self.stride, padding)
        return DepthwiseOptions(self.stride, explicit, self.of_relu6)


class SeparableBlock(nn.Module):
    """MobileNetV1's depthwise separable convolution (arXiv 1704.04861, section 3.1, figure 3).

    It costs 1/features + 1/9 of the multiply-adds of a standard 3x3 convolution, where `features`
    is the number of output channels. With `xception`, there is no batch norm and no activation
    between the depthwise and the pointwise convolution, as in Xception (arXiv 1610.02357,
    section 3). With `shortcut`, which V1 does not have, the input is added before the last
    activation if it has the shape of the output.
    """

    features: int
    stride: int = 1
    xception: bool = False
    shortcut: bool = False
    activation: Activation = relu6  # of that sum; the other ones are those of `conv_bn`
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
            return self.activation(x + pointwise(activation=linear)(y, train))
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

    Returns the output and the expanded tensor.
    """

    features: int
    stride: int = 1
    expansion: float = 6
    activation: Activation = relu6
    bottleneck: str = "linear"
    shortcut: str = "bottleneck"
    conv_bn: ConvBNFactory = ConvBN

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w k"],
        train: bool = False,
        previous: Float[Array, "n h0 w0 tk0"] | None = None,
    ) -> tuple[Float[Array, "n h2 w2 k2"], Float[Array, "n h w tk"]]:
        narrow = {"linear": linear, "relu6": relu6}[self.bottleneck]
        expanded, expands = x, self.expansion != 1
        # The depthwise layer applies the ReLU6 of the expanded tensor, unless that tensor is the
        # input.
        fused = expands and self.activation is relu6
        activation = linear if fused else self.activation
        if expands:
            wide = make_divisible(x.shape[-1] * self.expansion)
            added = previous if self.shortcut == "expansion" else None
            if added is not None and added.shape != (*x.shape[:-1], wide):
                added = None
            first = activation if added is None else linear
            expanded = self.conv_bn(wide, 1, activation=first, name="expand")(x, train)
            if added is not None:
                expanded = activation(expanded + added)
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
            y = y + x
        return y, expanded


class Hourglass(nn.Module):
    """ResNet's bottleneck block (arXiv 1512.03385, figure 5): narrow, convolve, widen, add.

    The 3x3 convolution is a standard convolution with features/4 input and output channels, and
    has the stride. If input and output differ in shape, the shortcut is a 1x1 convolution.
    """

    features: int
    stride: int = 1
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
        return jax.nn.relu(x + y)
