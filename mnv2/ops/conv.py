"""The convolution of XLA, in the layout of this package."""

from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.padding import Padding


def conv(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "k k c_group d"],
    stride: int,
    padding: Padding,
    groups: int = 1,
) -> Float[Array, "n h2 w2 d"]:
    """Convolves NHWC images with an HWIO kernel; the channels are divided into `groups`."""
    return lax.conv_general_dilated(
        images,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
