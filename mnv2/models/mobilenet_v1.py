"""MobileNetV1 (arXiv 1704.04861, table 1)."""

import functools

import flax.linen as nn
from jaxtyping import Array, Float

from mnv2.models.blocks import ConvBN, Conventions, SeparableBlock
from mnv2.models.classifier import classify

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
    conventions   of its layers: padding, batch norm, type (`mnv2.models.blocks.Conventions`)

    Features (`mnv2.models.features`): stem, block_0 ... block_12, pooled.
    """

    num_classes: int = 1000
    width: float = 1.0
    strides: tuple[int, ...] = IMAGENET_STRIDES
    xception: bool = False
    dropout: float = 0.001
    conventions: Conventions = Conventions()

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        conv_bn = functools.partial(ConvBN, conventions=self.conventions)
        stem_stride, *block_strides = self.strides
        stem_channels, *block_channels = scaled_channels(self.width)
        x = conv_bn(stem_channels, 3, stem_stride, name="stem")(images, train)
        for i, (features, stride) in enumerate(zip(block_channels, block_strides, strict=True)):
            x = SeparableBlock(features, stride, self.xception, conv_bn=conv_bn, name=f"block_{i}")(
                x, train
            )
        return classify(self, x, train)  # means of 1024 channels
