"""ResNet-50 (arXiv 1512.03385, table 1), whose bottleneck block MobileNetV2's block inverts."""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from mnv2.models.blocks import ConvBN, Conventions, Hourglass, make_divisible
from mnv2.models.classifier import classify
from mnv2.ops import explicit_padding

# The four stages of table 1: output channels and number of blocks.
STAGES = ((256, 3), (512, 4), (1024, 6), (2048, 3))

# Strides of the 7x7 stem, of the 3x3 max pooling, and of the first block of each stage. The 3x3
# convolution of a block has its stride, as in every current implementation.
IMAGENET_STRIDES = (2, 2, 1, 2, 2, 2)  # 224 -> 112, 56, 56, 28, 14, 7
SMALL_STRIDES = (1, 1, 1, 2, 2, 2)  # 32 -> 32, 32, 32, 16, 8, 4


class ResNet50(nn.Module):
    """Stem, max pooling, 16 hourglass blocks, global mean, classifier.

    num_classes   number of classes; 0 for no classifier: the result is then the pooled features
    width         width multiplier for every number of channels
    strides       of the stem, of the pooling and of the first block of each stage:
                  IMAGENET_STRIDES for 96 to 224 pixels, SMALL_STRIDES for 28 to 64. A stem of
                  stride 1 is 3x3 instead of 7x7, and a pooling of stride 1 is left out
    dropout       rate before the classifier
    conventions   of its layers: padding, batch norm, type (`mnv2.models.blocks.Conventions`)

    Features (`mnv2.models.features`): stem, block_0 ... block_15, pooled.
    """

    num_classes: int = 1000
    width: float = 1.0
    strides: tuple[int, ...] = IMAGENET_STRIDES
    dropout: float = 0.0
    conventions: Conventions = Conventions("symmetric", bn_momentum=0.9, bn_epsilon=1e-5)

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        conv_bn = functools.partial(ConvBN, conventions=self.conventions)
        stem_stride, pool_stride, *stage_strides = self.strides
        x = conv_bn(
            make_divisible(64 * self.width),
            3 if stem_stride == 1 else 7,
            stem_stride,
            activation=jax.nn.relu,
            name="stem",
        )(images, train)
        if pool_stride > 1:
            padding = explicit_padding(
                (x.shape[1], x.shape[2]), 3, pool_stride, self.conventions.padding
            )
            x = nn.max_pool(x, (3, 3), (pool_stride, pool_stride), padding)
        i = 0
        for (channels, repeats), stage_stride in zip(STAGES, stage_strides, strict=True):
            for repeat in range(repeats):
                stride = stage_stride if repeat == 0 else 1
                features = make_divisible(channels * self.width)
                x = Hourglass(features, stride, conv_bn, name=f"block_{i}")(x, train)
                i += 1
        return classify(self, x, train)  # means of 2048 channels
