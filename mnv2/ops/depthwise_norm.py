"""Depthwise convolution and batch norm of its result, with or without ReLU6, as one operation.

On NVIDIA GPUs the kernels of `depthwise_triton` do a part of batch norm's work while they have the
pixels in registers. The forward kernel sums its results and their squares, so that batch norm need
not read the result for its mean and variance. The backward kernel computes batch norm's gradient
for each pixel that it needs, so that it is never written to memory. By the larger of bytes and
instructions an H100 needs at least 10.6 ms instead of 11.4 for a training step of MobileNetV2 at
224 pixels, with batch 256 in bfloat16 (`experiments.speed.chips`).

Elsewhere the operation is the convolution followed by batch norm.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnv2.ops import batch_norm, depthwise
from mnv2.ops.arrays import Convolved, Images, Kernel, Vector
from mnv2.ops.platforms import platform_dependent
from mnv2.ops.shifted_products import DepthwiseOptions

# The result, and its mean and variance before it is normalised.
Normalized = tuple[Convolved, Vector, Vector]

# The gradients for (images, kernel, scale, bias).
Gradients = tuple[Images, Kernel, Vector, Vector]


class Saved(NamedTuple):
    """The tensors that the backward pass needs from the forward pass."""

    images: Images
    kernel: Kernel
    of_batch_norm: batch_norm.Saved


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def depthwise_and_normalize(
    images: Images,
    kernel: Kernel,
    scale: Vector,
    bias: Vector,
    epsilon: float,
    axis_name: batch_norm.Axis,
    options: DepthwiseOptions,
    then_relu6: bool,
) -> Normalized:
    """Returns normalize_batch(depthwise_conv(images, kernel, *options), scale, bias, ...).

    As in `normalize_batch`, no gradient flows through the mean and the variance.
    """
    return _forward(images, kernel, scale, bias, epsilon, axis_name, options, then_relu6)[0]


def _forward(
    images: Images,
    kernel: Kernel,
    scale: Vector,
    bias: Vector,
    epsilon: float,
    axis_name: batch_norm.Axis,
    options: DepthwiseOptions,
    then_relu6: bool,
) -> tuple[Normalized, Saved]:
    convolved, sums = platform_dependent(
        images,
        kernel,
        cuda=functools.partial(_convolve_on_cuda, options=options),
        default=functools.partial(_convolve, options=options),
    )
    normalized, saved = batch_norm.forward(
        convolved, scale, bias, epsilon, axis_name, then_relu6, sums
    )
    return normalized, Saved(images, kernel, saved)


def _backward(
    epsilon: float,
    axis_name: batch_norm.Axis,
    options: DepthwiseOptions,
    then_relu6: bool,
    saved: Saved,
    output_gradients: Normalized,
) -> Gradients:
    constants = axis_name, options, then_relu6
    return platform_dependent(
        saved,
        output_gradients[0],
        cuda=functools.partial(_gradients_on_cuda, *constants),
        default=functools.partial(_gradients, *constants),
    )


depthwise_and_normalize.defvjp(_forward, _backward)


def _convolve(
    images: Images, kernel: Kernel, options: DepthwiseOptions
) -> tuple[Convolved, batch_norm.Sums]:
    convolved = depthwise.depthwise_conv(images, kernel, *options)
    return convolved, batch_norm.sums_of(convolved)


def _convolve_on_cuda(
    images: Images, kernel: Kernel, options: DepthwiseOptions
) -> tuple[Convolved, batch_norm.Sums]:
    if kernels := depthwise.kernels_for_cuda():
        return kernels.convolve(images, kernel, options, sums=True)
    return _convolve(images, kernel, options)


def _gradients(
    axis_name: batch_norm.Axis,
    options: DepthwiseOptions,
    then_relu6: bool,
    saved: Saved,
    gradient: Convolved,
) -> Gradients:
    images, kernel, of_norm = saved
    g, g_scale, g_bias = batch_norm.gradients(of_norm, gradient, axis_name, then_relu6)
    return *depthwise.gradients(images, kernel, g, options), g_scale, g_bias


def _gradients_on_cuda(
    axis_name: batch_norm.Axis,
    options: DepthwiseOptions,
    then_relu6: bool,
    saved: Saved,
    gradient: Convolved,
) -> Gradients:
    kernels = depthwise.kernels_for_cuda()
    if not kernels:
        return _gradients(axis_name, options, then_relu6, saved, gradient)
    images, kernel, of_norm = saved
    (factor, slope, offset), g_scale, g_bias = batch_norm.coefficients(
        of_norm, gradient, axis_name, then_relu6
    )
    vectors = jnp.stack([factor, batch_norm.shift_of(of_norm), slope, offset])
    norm = of_norm.x, vectors, then_relu6
    return *kernels.gradients(images, kernel, gradient, options, norm), g_scale, g_bias
