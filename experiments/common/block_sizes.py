"""Peak memory of inference by the model of the MobileNetV2 paper (section 5.1, equation 2)."""

from typing import NamedTuple

from mnv2.models.blocks import make_divisible
from mnv2.models.mobilenet_v2 import MobileNetV2, blocks, scaled_channels


class BlockSize(NamedTuple):
    """The sizes of the tensors of one inverted residual block, for one image."""

    name: str
    inputs: int  # elements of the input
    outputs: int  # elements of the output
    channels: int  # of the expanded tensor
    pixels_before: int  # of the expanded tensor, before the depthwise convolution
    pixels_after: int  # of the expanded tensor, after the depthwise convolution
    expands: bool  # if not, the tensor before the depthwise convolution is the input

    def held(self, splits: int = 1) -> int:
        """Returns the number of elements that exist at the same time, with `splits` slices.

        These are the input, the output, and one slice before and after the depthwise convolution.
        This is equation 2 with the block as one operation; its size |op| is that slice.
        """
        slice_channels = -(-self.channels // splits)
        before = self.pixels_before if self.expands else 0
        return self.inputs + self.outputs + slice_channels * (before + self.pixels_after)


def block_sizes(model: MobileNetV2, image_size: tuple[int, int]) -> list[BlockSize]:
    """Returns the sizes of the tensors of each block, for images of (height, width) pixels."""
    channels = scaled_channels(model.width, model.rounding)
    stem_stride, *row_strides = model.strides
    height, width = (-(-length // stem_stride) for length in image_size)
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
