"""MobileNetV1 (arXiv 1704.04861, table 1)."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.models.blocks import ConvBN, SeparableBlock
from mnv2.models.classifier import classify
from mnv2.ops import Axis
from mnv2.ops.precision import accumulator
from mnv2.runtime.errors import UserError, check_positive

# Channels of the 13 pointwise convolutions.
CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

# Stride of the stem, then of each block. The paper's table also has 2 for the last block. That
# would give 4x4 pixels, but the table has 7x7 there, and the code of the authors has stride 1.
IMAGENET_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # 224 -> 112, 56, 28, 14, 7
SMALL_STRIDES = (1, 1, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)  # 32 -> 32, 32, 16, 8, 4


def scaled_channels(width: float) -> tuple[int, ...]:
    """Returns the channels of the stem and of the 13 blocks (section 3.3).

    They are the channels of table 1 times `width`, rounded down, and at least 8.
    """
    return tuple(max(8, int(channels * width)) for channels in (32, *CHANNELS))


class MobileNetV1(nn.Module):
    """Stem, 13 separable blocks, global mean, classifier.

    num_classes   number of classes; 0 for no classifier: the result is then the pooled features
    width         width multiplier for every number of channels: see `scaled_channels`
    strides       of the stem and of each block: IMAGENET_STRIDES for 96 to 224 pixels,
                  SMALL_STRIDES for 28 to 64
    xception      no batch norm and no activation between the depthwise and pointwise convolution
    dropout       rate before the classifier
    padding       same (TensorFlow) or symmetric (PyTorch)
    bn_frozen     batch norm uses its running statistics in training too
    axis_name     device axis over which batch norm is synchronised
    dtype         type of the computation; parameters, statistics and logits are at least float32

    Features (`mnv2.models.features`): stem, block_0 ... block_12, pooled.
    """

    num_classes: int = 1000
    width: float = 1.0
    strides: tuple[int, ...] = IMAGENET_STRIDES
    xception: bool = False
    dropout: float = 0.001
    padding: str = "same"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    bn_frozen: bool = False
    axis_name: Axis = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise UserError(f"num_classes must be 0 or more, got {self.num_classes}")
        check_positive(self.width, "width")
        if len(self.strides) != 1 + len(CHANNELS):
            raise UserError(f"strides must be {1 + len(CHANNELS)} numbers, got {self.strides}")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        conv_bn = functools.partial(
            ConvBN,
            padding=self.padding,
            bn_momentum=self.bn_momentum,
            bn_epsilon=self.bn_epsilon,
            bn_frozen=self.bn_frozen,
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        stem_stride, *block_strides = self.strides
        stem_channels, *block_channels = scaled_channels(self.width)
        x = conv_bn(stem_channels, 3, stem_stride, name="stem")(images, train)
        for i, (features, stride) in enumerate(zip(block_channels, block_strides, strict=True)):
            x = SeparableBlock(features, stride, self.xception, conv_bn=conv_bn, name=f"block_{i}")(
                x, train
            )
        x = jnp.mean(x, axis=(1, 2), dtype=accumulator(self.dtype))  # n 1024
        self.sow("intermediates", "pooled", x)
        return classify(self, x, train)
