"""Batch norm, with or without ReLU6, whose backward pass reads the image twice, not five times.

Automatic differentiation of the textbook formula leaves several reductions to XLA, with selects
and broadcasts inside. The CPU backend of XLA runs these far below memory speed. Written out, the
gradient needs only two sums, of `g` and of `g * x`, and one linear combination of `g` and `x`.
Here x is the input of batch norm, and g is the gradient of the loss for its output. ReLU6 is part
of the operation, because its mask follows from x: neither the mask nor the tensor before ReLU6 has
to be kept.

The sums of products are dot products on CPU, where XLA's reductions are slow. On other platforms
they are reductions in float32, which XLA fuses into the convolution before them. A dot product
there is a pass of its own (a step of MobileNetV2 on a TPU v5e takes 134.7 million cycles with it,
115.7 without it), and it would round the factors first.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.arrays import Images, Vector
from mnv2.ops.platforms import platform_dependent
from mnv2.ops.precision import accumulator
from mnv2.ops.relu6 import before_relu6, relu6

# Vectors over channels: the gradient for x is factor * g + slope * x + offset.
Coefficients = tuple[Vector, Vector, Vector]

# The sums over the pixels of an image, and of its squares, of this device, per channel.
Sums = tuple[Vector, Vector]

# An image with two vectors over its channels: either (y, mean, variance), or the gradients for
# (x, scale, bias).
ImageAndTwoVectors = tuple[Images, Vector, Vector]


class DeviceGroup(NamedTuple):
    """Devices whose batches have their statistics in common: `size` neighbours on an axis.

    `size` divides the number of devices of the axis.
    """

    axis_name: str
    size: int


# All devices of an axis, a group of them, or this device alone.
Axis = str | DeviceGroup | None


class Saved(NamedTuple):
    """The tensors that the backward pass needs from the forward pass.

    `mean` is the mean of `x` per channel, and `inverse_std` is 1 / sqrt(variance + epsilon).
    """

    x: Images
    scale: Vector
    bias: Vector
    mean: Vector
    inverse_std: Vector


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_batch(
    x: Images,
    scale: Vector,
    bias: Vector,
    epsilon: float,
    axis_name: Axis,
    then_relu6: bool = False,
) -> ImageAndTwoVectors:
    """Returns (x - mean) / sqrt(variance + epsilon) * scale + bias, the mean and the variance.

    With `then_relu6`, the first of them is relu6 of that. Mean and biased variance are those of the
    batch, over all devices of `axis_name` together. They are meant for running averages: no
    gradient flows through them.
    """
    return forward(x, scale, bias, epsilon, axis_name, then_relu6)[0]


def forward(
    x: Images,
    scale: Vector,
    bias: Vector,
    epsilon: float,
    axis_name: Axis,
    then_relu6: bool = False,
    sums: Sums | None = None,
) -> tuple[ImageAndTwoVectors, Saved]:
    """Returns the results of `normalize_batch`, and the tensors that `gradients` needs.

    `sums` are those of x, if the operation that computed x has them.
    """
    total, squares = (sum_over_devices(value, axis_name) for value in sums or sums_of(x))
    pixels = count_pixels(x, axis_name)
    mean = total / pixels
    var = jnp.maximum(squares / pixels - mean * mean, 0)
    inverse_std = lax.rsqrt(var + epsilon)
    saved = Saved(x, scale, bias, mean, inverse_std)
    y = _normalized(saved, x)
    y = relu6(y) if then_relu6 else y
    return (y.astype(x.dtype), mean, var), saved


def sums_of(x: Images) -> Sums:
    """Returns the sums of x that `forward` needs."""
    return jnp.sum(x, (0, 1, 2), dtype=accumulator(x.dtype)), _sum_of_products(x, x)


def _normalized(saved: Saved, x: Images) -> Images:
    factor = saved.inverse_std * saved.scale
    return x * factor + shift_of(saved)


def shift_of(saved: Saved) -> Vector:
    """Returns what is added to x * scale / std to normalise it."""
    return saved.bias - saved.mean * (saved.inverse_std * saved.scale)


def gradients(
    saved: Saved, g: Images, axis_name: Axis, then_relu6: bool = False
) -> ImageAndTwoVectors:
    """Returns the gradients for x, scale and bias, given the gradient for y."""
    (factor, slope, offset), g_scale, g_bias = coefficients(saved, g, axis_name, then_relu6)
    x = saved.x
    if then_relu6:
        # On CUDA XLA would write `g` behind the mask to memory for its second use; behind a barrier
        # it computes it again. A step moves 1.4 GB less.
        g, x = platform_dependent(g, x, cuda=_barrier, default=lambda *images: images)
        g = before_relu6(g, _normalized(saved, x))
    return (factor * g + slope * x + offset).astype(x.dtype), g_scale, g_bias


def coefficients(
    saved: Saved, g: Images, axis_name: Axis, then_relu6: bool
) -> tuple[Coefficients, Vector, Vector]:
    """Returns (factor, slope, offset), and the gradients for scale and bias.

    The gradient for x is factor * g + slope * x + offset, with g behind the mask of ReLU6. It is
    scale/std * (g - mean(g) - x_hat * mean(g * x_hat)), with x_hat = (x - mean)/std and means over
    all pixels of all devices.
    """
    x, scale, _, mean, inverse_std = saved
    g = before_relu6(g, _normalized(saved, x)) if then_relu6 else g
    local_g = jnp.sum(g, (0, 1, 2), dtype=mean.dtype)
    local_gx = _sum_of_products(g, x)
    sum_g = sum_over_devices(local_g, axis_name)
    sum_gx = sum_over_devices(local_gx, axis_name)
    pixels = count_pixels(x, axis_name)
    factor = scale * inverse_std
    slope = slope_of(factor, inverse_std, sum_gx - mean * sum_g, pixels)
    offset = -mean * slope - factor * sum_g / pixels
    # The gradients for parameters cover the images of this device only: the training step adds
    # them up when it averages gradients over devices.
    return (factor, slope, offset), (local_gx - mean * local_g) * inverse_std, local_g


def _barrier(*images: Array) -> tuple[Array, ...]:
    return lax.optimization_barrier(images)


def _backward(
    epsilon: float,
    axis_name: Axis,
    then_relu6: bool,
    saved: Saved,
    output_gradients: ImageAndTwoVectors,
) -> ImageAndTwoVectors:
    return gradients(saved, output_gradients[0], axis_name, then_relu6)


normalize_batch.defvjp(forward, _backward)


def slope_of(factor: Vector, inverse_std: Vector, sum_gx: Vector, pixels: int) -> Vector:
    """Returns the slope of `coefficients`, given the sum of g (x - mean) over all pixels."""
    return -factor * inverse_std * inverse_std * sum_gx / pixels


def _sum_of_products(a: Images, b: Images) -> Vector:
    dtype = accumulator(a.dtype)

    def dot(a: Array, b: Array) -> Array:
        return jnp.einsum("nhwc,nhwc->c", a, b, preferred_element_type=dtype)

    def reduction(a: Array, b: Array) -> Array:
        return jnp.sum(a.astype(dtype) * b.astype(dtype), (0, 1, 2))

    return platform_dependent(a, b, cpu=dot, default=reduction)


def sum_over_devices(value: Float[Array, "*shape"], axis_name: Axis) -> Float[Array, "*shape"]:
    """Sums `value` over the devices of `axis_name`; without an axis, returns it unchanged."""
    if axis_name is None:
        return value
    if not isinstance(axis_name, DeviceGroup):
        return lax.psum(value, axis_name)
    axis, size = axis_name
    if size == 1:
        return value
    starts = range(0, lax.axis_size(axis), size)
    groups = [list(range(start, start + size)) for start in starts]
    return lax.psum(value, axis, axis_index_groups=groups)


def count_pixels(images: Images, axis_name: Axis) -> int:
    """Counts the pixels of the images of all devices of `axis_name` together."""
    if isinstance(axis_name, DeviceGroup):
        devices = axis_name.size
    else:
        devices = 1 if axis_name is None else lax.axis_size(axis_name)
    return devices * images.size // images.shape[-1]
