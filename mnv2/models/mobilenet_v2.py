"""MobileNetV2 (arXiv 1801.04381, table 2)."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from mnv2.models.blocks import (
    ConvBN,
    Conventions,
    Hourglass,
    InvertedResidual,
    SeparableBlock,
    make_divisible,
)
from mnv2.models.classifier import classify
from mnv2.ops import relu6
from mnv2.runtime.errors import check_choice

# The rows of bottleneck blocks in table 2: channels c and repeats n. They have 17 blocks in all.
CHANNELS = (16, 24, 32, 64, 96, 160, 320)
REPEATS = (1, 2, 3, 4, 3, 3, 1)

# Strides of the stem, then of the first block of each row.
IMAGENET_STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)  # 224 -> 112, 112, 56, 28, 14, 14, 7, 7
SMALL_STRIDES = (1, 1, 1, 2, 2, 1, 2, 1)  # 32 -> 32, 32, 32, 16, 8, 8, 4, 4

BLOCKS = ("inverted_residual", "separable", "separable_shortcut", "hourglass")
ACTIVATIONS = {"relu6": relu6, "relu": jax.nn.relu}
BOTTLENECKS = ("linear", "relu6")
SHORTCUTS = ("bottleneck", "expansion", "none")
ROUNDINGS = ("nearest", "nearest_4", "fixed_ends", "up")


class Channels(NamedTuple):
    """Output channels of the stem, of the blocks of each row, and of the last convolution."""

    stem: int
    rows: tuple[int, ...]
    last: int


@functools.cache  # a file of weights is compared with every known width
def scaled_channels(width: float, rounding: str = "nearest") -> Channels:
    """Returns the channels of table 2 times `width`, rounded as a published implementation does.

    nearest     slim, Keras, torchvision, timm, d-li14: make_divisible by 8; the last convolution
                has 1280 channels, or more with a width above 1, but never fewer (section 6.1)
    nearest_4   d-li14 at width 0.1: as nearest, but by 4
    fixed_ends  110d and 120d of timm: as nearest, but stem and last convolution as at width 1
    up          tonylins: up to the next multiple of 8, stem and first row as at width 1

    Raises UserError for any other rounding.
    """
    check_choice(rounding, ROUNDINGS, "rounding")

    def scaled(channels: int) -> int:
        if rounding == "up":
            return math.ceil(channels * width / 8) * 8
        return make_divisible(channels * width, 4 if rounding == "nearest_4" else 8)

    first, *rest = CHANNELS
    return Channels(
        stem=32 if rounding in ("fixed_ends", "up") else scaled(32),
        rows=(first if rounding == "up" else scaled(first), *map(scaled, rest)),
        last=1280 if rounding == "fixed_ends" or width <= 1 else scaled(1280),
    )


class MobileNetV2(nn.Module):
    """Stem, 17 blocks, 1x1 convolution to 1280, global mean, classifier.

    num_classes   number of classes; 0 for no classifier: the result is then the pooled features
    width         width multiplier for every number of channels (section 6.1)
    rounding      rule by which these numbers are rounded: see `scaled_channels`
    expansion     t of every block except the first, whose t is 1
    activation    of the stem, of the wide tensors and of the last convolution: relu6, or relu
    bottleneck    activation of the narrow tensors: linear, or relu6 (figure 6a)
    shortcut      bottleneck, expansion, or none (figure 6b)
    block         kind of block in the rows of table 2: inverted_residual (the paper), separable
                  (MobileNetV1), separable_shortcut (the same with a shortcut) or hourglass
                  (ResNet). It compares blocks in the same network
    repeats       number of blocks in each row (n); a row of 0 is left out, with
                  its stride
    strides       of the stem and of the first block of each row: IMAGENET_STRIDES for 96 to 224
                  pixels, SMALL_STRIDES for 28 to 64
    dropout       rate before the classifier
    conventions   of its layers: padding, batch norm, type (`mnv2.models.blocks.Conventions`)

    Features (`mnv2.models.features`): stem, block_0 ... block_16, block_0_expanded ...
    block_16_expanded, last_conv, pooled.
    """

    num_classes: int = 1000
    width: float = 1.0
    rounding: str = "nearest"
    expansion: float = 6
    activation: str = "relu6"
    bottleneck: str = "linear"
    shortcut: str = "bottleneck"
    block: str = "inverted_residual"
    repeats: tuple[int, ...] = REPEATS
    strides: tuple[int, ...] = IMAGENET_STRIDES
    dropout: float = 0.2
    conventions: Conventions = Conventions()

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        activation = ACTIVATIONS[self.activation]
        conv_bn = functools.partial(ConvBN, activation=activation, conventions=self.conventions)
        stem_stride, *row_strides = self.strides
        channels = scaled_channels(self.width, self.rounding)
        x = conv_bn(channels.stem, 3, stem_stride, name="stem")(images, train)

        expanded = None
        for i, (features, stride) in enumerate(blocks(channels.rows, self.repeats, row_strides)):
            name = f"block_{i}"
            if self.block == "inverted_residual":
                x, expanded = InvertedResidual(
                    features,
                    stride,
                    expansion=1 if i == 0 else self.expansion,
                    activation=activation,
                    bottleneck=self.bottleneck,
                    shortcut=self.shortcut,
                    conv_bn=conv_bn,
                    name=name,
                )(x, train, expanded)
            elif self.block != "hourglass":
                x = SeparableBlock(
                    features,
                    stride,
                    shortcut=self.block == "separable_shortcut",
                    activation=activation,
                    conv_bn=conv_bn,
                    name=name,
                )(x, train)
            else:
                x = Hourglass(features, stride, conv_bn, name=name)(x, train)

        x = conv_bn(channels.last, 1, name="last_conv")(x, train)  # n h/32 w/32 1280
        return classify(self, x, train)  # means of 1280 channels


def blocks(
    rows: Sequence[int], repeats: Sequence[int], row_strides: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yields the output channels and the stride of every block of table 2."""
    for channels, count, row_stride in zip(rows, repeats, row_strides, strict=True):
        for repeat in range(count):
            yield channels, row_stride if repeat == 0 else 1
