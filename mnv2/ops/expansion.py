"""1x1 convolution to more channels and batch norm of its result, as one operation.

In a training step, MobileNetV2 moves its expanded tensors through memory more than anything else.
The convolution writes each of them. Batch norm reads it twice for its mean and variance, and
normalises it. In the backward pass, batch norm reads it and its gradient twice more. On CPU and
CUDA this module avoids all of these passes except the first. Let y = x w be the result of the
convolution, with m the mean of x over pixels, p = x - m, and C the covariance of x. Batch norm
needs the mean of y, the variance of y and the sum of g (y - mean(y)), where g is the gradient of
the loss for the output of batch norm. All three follow from narrow tensors:

    mean(y) = m w        var(y)_d = w_d' C w_d        sum(g (y - mean(y)))_d = w_d' (p' g)_d

The gradient for y is factor g + slope (y - mean(y)) - factor mean(g), with `batch_norm.slope_of`.
It passes through w without being written to memory:

    for x:  g (factor w)' + p (w slope w') - (factor mean(g)) w'
    for w:  factor (p' g) + slope (p' p) w

The latter is what all devices together add up to: the gradient for y sums to zero over all pixels,
so that m has no part in it. C costs inputs / features of the convolution's own multiply-adds, so
this is faster only if a layer has many more features (output channels) than inputs (input
channels). Together with ReLU6 inside the depthwise convolution, it changed a training step of
MobileNetV2 at 224 pixels, batch 32, on two cores, from 1.02 to 0.91 s, and the memory of the
process from 5.6 to 4.1 GiB. By XLA's compiler for an H100, a step with batch 256 in bfloat16 moves
49.0 instead of 53.7 GB.

The products are of p and not of x. Otherwise the variance would be a small difference of large
numbers wherever the mean of x is many times its standard deviation.

Elsewhere the operation is the convolution followed by batch norm. On a TPU XLA fuses the sums of
batch norm into the convolution, and the moments take 164 instead of 116 million cycles.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops import batch_norm
from mnv2.ops.arrays import Images, Vector, Weights, Wide, WideVector
from mnv2.ops.platforms import platform_dependent
from mnv2.ops.pointwise import gradients_of_conv, pointwise_conv
from mnv2.ops.precision import accumulator

# The largest inputs * inputs / features for which the products of inputs cost less than they save.
LARGEST_RATIO = 48

# On CUDA the matrices have a multiple of so many columns. The rows of 17, 25 or 33 columns are not
# aligned, so that a kernel would read them two bytes at a time. It adds 1 % to a step's traffic.
CUDA_COLUMNS = 8

# The gradients for (images, kernel, scale, bias).
Gradients = tuple[Images, Weights, WideVector, WideVector]

# The output, its mean and its variance before normalisation.
Normalized = tuple[Wide, WideVector, WideVector]


class Intermediates(NamedTuple):
    """The intermediate tensors of the forward pass, with the same shapes on every platform.

    convolved    the result of the convolution. Where nothing reads it, the output stands in its
                 place: the output is in memory anyway, for the layer that follows
    mean         of the result of the convolution, per channel
    inverse_std  1 / sqrt(variance + epsilon) of the result of the convolution, per channel
    centre       the mean of the images, per channel
    moments      the products of all centred inputs with one another, summed over the pixels of this
                 device. Where nothing reads it and `centre`, they are zeros
    """

    convolved: Wide
    mean: WideVector
    inverse_std: WideVector
    centre: Vector
    moments: Float[Array, "c c"]


class Saved(NamedTuple):
    """The tensors that the backward pass needs from the forward pass."""

    images: Images
    kernel: Weights
    scale: WideVector
    bias: WideVector
    intermediates: Intermediates


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def expand_and_normalize(
    images: Images,
    kernel: Weights,
    scale: WideVector,
    bias: WideVector,
    epsilon: float,
    axis_name: batch_norm.Axis,
) -> Normalized:
    """Returns normalize_batch(pointwise_conv(images, kernel), scale, bias, epsilon, axis_name).

    As in `normalize_batch`, no gradient flows through the mean and the variance.
    """
    return _forward(images, kernel, scale, bias, epsilon, axis_name)[0]


def is_faster_fused(inputs: int, features: int) -> bool:
    """Returns whether `expand_and_normalize` is faster than convolution and batch norm in turn.

    It is if the layer has many more features (output channels) than inputs (input channels).
    """
    return inputs**2 <= LARGEST_RATIO * features


def _forward(
    images: Images,
    kernel: Weights,
    scale: WideVector,
    bias: WideVector,
    epsilon: float,
    axis_name: batch_norm.Axis,
) -> tuple[Normalized, Saved]:
    by_moments = functools.partial(_by_moments, epsilon=epsilon, axis_name=axis_name)
    on_cuda = functools.partial(by_moments, multiple=CUDA_COLUMNS)
    normalized, intermediates = platform_dependent(
        images,
        kernel,
        scale,
        bias,
        cpu=by_moments,
        cuda=on_cuda,
        default=functools.partial(_one_by_one, epsilon=epsilon, axis_name=axis_name),
    )
    return normalized, Saved(images, kernel, scale, bias, intermediates)


def _backward(
    epsilon: float, axis_name: batch_norm.Axis, saved: Saved, output_gradients: Normalized
) -> Gradients:
    by_moments = functools.partial(_gradients_by_moments, axis_name=axis_name)
    return platform_dependent(
        saved,
        output_gradients[0],
        cpu=by_moments,
        cuda=functools.partial(by_moments, multiple=CUDA_COLUMNS),
        default=functools.partial(_gradients_one_by_one, axis_name=axis_name),
    )


expand_and_normalize.defvjp(_forward, _backward)


def _one_by_one(
    images: Images,
    kernel: Weights,
    scale: WideVector,
    bias: WideVector,
    *,
    epsilon: float,
    axis_name: batch_norm.Axis,
) -> tuple[Normalized, Intermediates]:
    convolved = pointwise_conv(images, kernel)
    normalized, saved = batch_norm.forward(convolved, scale, bias, epsilon, axis_name)
    inputs, dtype = images.shape[-1], saved.mean.dtype
    unused = jnp.zeros(inputs, dtype), jnp.zeros((inputs, inputs), dtype)
    return normalized, Intermediates(convolved, saved.mean, saved.inverse_std, *unused)


def _gradients_one_by_one(saved: Saved, gradient: Wide, *, axis_name: batch_norm.Axis) -> Gradients:
    convolved, mean, inverse_std, _, _ = saved.intermediates
    of_batch_norm = batch_norm.Saved(convolved, saved.scale, saved.bias, mean, inverse_std)
    g, g_scale, g_bias = batch_norm.gradients(of_batch_norm, gradient, axis_name)
    return *gradients_of_conv(saved.images, saved.kernel, g), g_scale, g_bias


def _by_moments(
    images: Images,
    kernel: Weights,
    scale: WideVector,
    bias: WideVector,
    *,
    epsilon: float,
    axis_name: batch_norm.Axis,
    multiple: int = 1,
) -> tuple[Normalized, Intermediates]:
    inputs = images.shape[-1]
    weights = kernel[0, 0].astype(accumulator(images.dtype))
    count = batch_norm.count_pixels(images, axis_name)
    total = jnp.sum(images, (0, 1, 2), dtype=weights.dtype)
    centre = batch_norm.sum_over_devices(total, axis_name) / count
    pixels = _centred_and_ones(images, centre, multiple)
    moments = _sum_of_products(pixels, pixels)[:inputs, :inputs]
    covariance = batch_norm.sum_over_devices(moments, axis_name) / count
    var = jnp.maximum(jnp.sum(weights * _exactly(covariance, weights), 0), 0)
    inverse_std = lax.rsqrt(var + epsilon)
    weights_and_bias = _rows(pixels, weights * (scale * inverse_std), bias).astype(pixels.dtype)
    y = (pixels @ weights_and_bias).reshape(*images.shape[:3], -1)
    mean = _exactly(centre, weights)
    return (y, mean, var), Intermediates(y, mean, inverse_std, centre, moments)


def _gradients_by_moments(
    saved: Saved, gradient: Wide, *, axis_name: batch_norm.Axis, multiple: int = 1
) -> Gradients:
    images, kernel, scale, _, (_, mean, inverse_std, centre, moments) = saved
    inputs, weights = images.shape[-1], kernel[0, 0].astype(mean.dtype)
    pixels = _centred_and_ones(images, centre, multiple)
    g = gradient.reshape(pixels.shape[0], -1)
    sums = _sum_of_products(pixels, g)
    sum_pg, local_g = sums[:inputs], sums[inputs]
    local_gy = jnp.sum(weights * sum_pg, 0)  # of y - mean(y)
    sum_g = batch_norm.sum_over_devices(local_g, axis_name)
    sum_gy = batch_norm.sum_over_devices(local_gy, axis_name)
    count = batch_norm.count_pixels(images, axis_name)
    factor = scale * inverse_std
    slope = batch_norm.slope_of(factor, inverse_std, sum_gy, count)
    g_weights = sum_pg * factor + _exactly(moments, weights) * slope
    through_g = lax.dot_general(g, (weights * factor).astype(g.dtype), (((1,), (1,)), ((), ())))
    of_pixels = _exactly(_rows(pixels, weights * slope, -factor * sum_g / count), weights.T)
    g_pixels = through_g + pixels @ of_pixels.astype(pixels.dtype)
    return (
        g_pixels.reshape(images.shape),
        g_weights[None, None].astype(kernel.dtype),
        local_gy * inverse_std,
        local_g,
    )


def _centred_and_ones(
    images: Images, centre: Vector, multiple: int
) -> Float[Array, "n*h*w c_and_1"]:
    """Returns the centred pixels as rows, and a column of ones: products with it are sums.

    Columns of zeros follow, up to a multiple of `multiple`.
    """
    centred = (images - centre).astype(images.dtype)
    with_ones = jnp.pad(centred, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    zeros = -with_ones.shape[-1] % multiple
    if zeros:
        with_ones = jnp.pad(with_ones, ((0, 0), (0, 0), (0, 0), (0, zeros)))
    return with_ones.reshape(-1, with_ones.shape[-1])


def _rows(
    pixels: Float[Array, "r c_and_1"], of_pixels: Float[Array, "c d"], of_ones: WideVector
) -> Float[Array, "c_and_1 d"]:
    """Returns a matrix for the right of `pixels`: what its columns are multiplied with."""
    rows = jnp.vstack([of_pixels, of_ones])
    return jnp.pad(rows, ((0, pixels.shape[1] - len(rows)), (0, 0)))


def _sum_of_products(a: Float[Array, "r c"], b: Float[Array, "r d"]) -> Float[Array, "c d"]:
    """Computes a' b: the products of every column of `a` and of `b`, summed over rows."""
    dims = (((0,), (0,)), ((), ()))
    return lax.dot_general(a, b, dims, preferred_element_type=accumulator(a.dtype))


def _exactly(a: Float[Array, "*r c"], b: Float[Array, "c d"]) -> Float[Array, "*r d"]:
    """Multiplies small matrices of statistics, in float32 where the default is TF32."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
