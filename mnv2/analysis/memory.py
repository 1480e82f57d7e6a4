"""Activations that inference holds at a time, by the paper's model (section 5.1, equation 2)."""

from typing import NamedTuple

from mnv2.models.blocks import make_divisible
from mnv2.models.mobilenet_v2 import MobileNetV2, blocks, scaled_channels
from mnv2.runtime.errors import UserError


class BlockSize(NamedTuple):
    """Elements of one inverted residual's tensors, for one image."""

    name: str
    inputs: int
    outputs: int
    channels: int  # of the expanded tensor
    pixels_before: int  # of the expanded tensor, before the depthwise convolution
    pixels_after: int
    expands: bool  # if not, the tensor before the depthwise convolution is the input

    def held(self, splits: int = 1) -> int:
        """Elements that exist at once: input, output, and one slice before and after depthwise.

        Equation 2 with the block as one operation whose own size |op| is that slice.
        """
        slice_channels = -(-self.channels // splits)
        before = self.pixels_before if self.expands else 0
        return self.inputs + self.outputs + slice_channels * (before + self.pixels_after)


def block_sizes(model: MobileNetV2, image: tuple[int, int]) -> list[BlockSize]:
    """The tensors of each block of `model`, for images of (height, width)."""
    channels = scaled_channels(model.width, model.rounding)
    stem_stride, *row_strides = model.strides
    height, width = (-(-length // stem_stride) for length in image)
    inputs, sizes = channels.stem, []
    for i, (features, stride) in enumerate(blocks(channels.rows, model.repeats, row_strides)):
        before = height * width
        height, width = -(-height // stride), -(-width // stride)
        after = height * width
        expansion = 1 if i == 0 else model.expansion
        expanded = inputs if expansion == 1 else make_divisible(inputs * expansion)
        sizes.append(
            BlockSize(
                f"block_{i}",
                before * inputs,
                after * features,
                expanded,
                before,
                after,
                expands=expansion != 1,
            )
        )
        inputs = features
    return sizes


def splits_within(
    model: MobileNetV2, image: tuple[int, int], budget: int, bytes_per_element: int = 4
) -> tuple[int, ...]:
    """For each block the fewest splits that hold no more than `budget` bytes.

    Raises UserError, with what would be enough, if slices of one channel are too much.
    """
    sizes = block_sizes(model, image)
    worst = max(sizes, key=lambda size: size.held(size.channels))
    least = worst.held(worst.channels) * bytes_per_element
    if least > budget:
        raise UserError(
            f"{budget:,} bytes are too few: {worst.name} holds {least:,} with one channel at a time"
        )
    return tuple(
        next(t for t in range(1, size.channels + 1) if size.held(t) * bytes_per_element <= budget)
        for size in sizes
    )
