"""MobileNetV2 (arXiv 1801.04381, table 2)."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mnv2.errors import UserError, check_choice, check_positive
from mnv2.models.blocks import (
    CLASSIFIER_INIT,
    ConvBN,
    Hourglass,
    InvertedResidual,
    SeparableBlock,
    make_divisible,
)

# Table 2's rows of bottlenecks: channels c and repeats n. 17 blocks in all.
CHANNELS = (16, 24, 32, 64, 96, 160, 320)
REPEATS = (1, 2, 3, 4, 3, 3, 1)

# Stride of the stem, then of the first block of each row.
IMAGENET_STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)  # 224 -> 112, 112, 56, 28, 14, 14, 7, 7
SMALL_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)  # 32 -> 32, 32, 32, 16, 8, 8, 4, 4

BLOCKS = ("inverted_residual", "separable", "hourglass")
BOTTLENECKS = ("linear", "relu6")
SHORTCUTS = ("bottleneck", "expansion", "none")


class MobileNetV2(nn.Module):
    """Stem, 17 blocks, 1x1 convolution to 1280, global mean, classifier.

    num_classes   0 for none: the result is then the pooled features
    width         multiplies every number of channels but the last convolution's, which grows
                  with a width above 1 and does not shrink below (section 6.1)
    expansion     t of every block but the first, whose t is 1
    bottleneck    linear, or relu6 (figure 6a)
    shortcut      bottleneck, expansion, or none (figure 6b)
    block         what stands in table 2's rows: the paper's inverted_residual, MobileNetV1's
                  separable or ResNet's hourglass, to compare blocks in one and the same network
    repeats       blocks in each row (n)
    strides       of the stem and of each row's first block: IMAGENET_STRIDES for 96 to 224
                  pixels, SMALL_STRIDES for 28 to 64
    dropout       rate before the classifier
    padding       same (TensorFlow) or symmetric (PyTorch)
    axis_name     device axis over which batch norm is synchronised
    dtype         of the computation; parameters, statistics and logits are float32

    Features (`mnv2.models.features`): stem, block_0 ... block_16, block_i_expanded,
    last_conv, pooled.
    """

    num_classes: int = 1000
    width: float = 1.0
    expansion: float = 6
    bottleneck: str = "linear"
    shortcut: str = "bottleneck"
    block: str = "inverted_residual"
    repeats: tuple[int, ...] = REPEATS
    strides: tuple[int, ...] = IMAGENET_STRIDES
    dropout: float = 0.2
    padding: str = "same"
    bn_momentum: float = 0.99
    bn_epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32

    def __post_init__(self):
        if self.num_classes < 0:
            raise UserError(f"num_classes must be 0 or more, got {self.num_classes}")
        check_positive(self.width, "width")
        check_positive(self.expansion, "expansion")
        check_choice(self.bottleneck, BOTTLENECKS, "bottleneck")
        check_choice(self.shortcut, SHORTCUTS, "shortcut")
        check_choice(self.block, BLOCKS, "block")
        if len(self.repeats) != len(CHANNELS):
            raise UserError(f"repeats must be {len(CHANNELS)} numbers, got {self.repeats}")
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
            axis_name=self.axis_name,
            dtype=self.dtype,
        )
        stem_stride, *row_strides = self.strides
        x = conv_bn(make_divisible(32 * self.width), 3, stem_stride, name="stem")(images, train)

        expanded = None
        for i, (channels, stride) in enumerate(_blocks(self.repeats, row_strides)):
            features, name = make_divisible(channels * self.width), f"block_{i}"
            if self.block == "inverted_residual":
                x, expanded = InvertedResidual(
                    features,
                    stride,
                    expansion=1 if i == 0 else self.expansion,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    conv_bn=conv_bn,
                    name=name,
                )(x, train, expanded)
            else:
                block = SeparableBlock if self.block == "separable" else Hourglass
                x = block(features, stride, conv_bn=conv_bn, name=name)(x, train)

        last = make_divisible(1280 * max(1.0, self.width))
        x = conv_bn(last, 1, name="last_conv")(x, train)  # n h/32 w/32 1280
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)  # n 1280
        self.sow("intermediates", "pooled", x)
        if not self.num_classes:
            return x
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=CLASSIFIER_INIT, name="classifier")(x)


def _blocks(repeats: Sequence[int], row_strides: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields channels (at width 1) and stride of every block of table 2."""
    for channels, count, row_stride in zip(CHANNELS, repeats, row_strides, strict=True):
        for repeat in range(count):
            yield channels, row_stride if repeat == 0 else 1
