"""MobileNetV1 and V2 in plain Flax, without any optimisation for speed, as a baseline."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.models import mobilenet_v1, mobilenet_v2
from mnv2.models.blocks import linear, make_divisible, relu6


class MobileNet(nn.Module):
    """A network of `mnv2.models`, made of nn.Conv with feature_group_count and nn.BatchNorm.

    Attributes:
        network: "mobilenet_v1" or "mobilenet_v2".
        width: The width multiplier.
    """

    network: str
    width: float = 1.0

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n 1000"]:
        def conv_bn(
            x: Array,
            channels: int,
            size: int,
            stride: int = 1,
            groups: int = 1,
            act: Callable[[Array], Array] = relu6,
        ) -> Array:
            x = nn.Conv(channels, (size, size), stride, feature_group_count=groups, use_bias=False)(
                x
            )
            return act(nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1e-3)(x))

        layers = {"mobilenet_v1": self.separable, "mobilenet_v2": self.inverted_residuals}
        x = layers[self.network](conv_bn, images)
        return nn.Dense(1000)(jnp.mean(x, (1, 2)))

    def separable(self, conv_bn: Callable[..., Any], images: Array) -> Array:
        """Applies the layers of V1 before the pooling."""
        stem, *features = mobilenet_v1.scaled_channels(self.width)
        stem_stride, *strides = mobilenet_v1.IMAGENET_STRIDES
        x = conv_bn(images, stem, 3, stem_stride)
        for channels, stride in zip(features, strides, strict=True):
            x = conv_bn(x, x.shape[-1], 3, stride, x.shape[-1])
            x = conv_bn(x, channels, 1)
        return x

    def inverted_residuals(self, conv_bn: Callable[..., Any], images: Array) -> Array:
        """Applies the layers of V2 before the pooling."""
        channels = mobilenet_v2.scaled_channels(self.width)
        stem_stride, *strides = mobilenet_v2.IMAGENET_STRIDES
        x = conv_bn(images, channels.stem, 3, stem_stride)
        rows = mobilenet_v2.blocks(channels.rows, mobilenet_v2.REPEATS, strides)
        for i, (features, stride) in enumerate(rows):
            y = conv_bn(x, make_divisible(6 * x.shape[-1]), 1) if i else x
            y = conv_bn(y, y.shape[-1], 3, stride, y.shape[-1])
            y = conv_bn(y, features, 1, act=linear)
            x = x + y if x.shape == y.shape else y
        return conv_bn(x, channels.last, 1)
