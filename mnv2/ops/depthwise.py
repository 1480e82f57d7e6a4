"""Depthwise convolution: one k x k filter per channel.

XLA has one operation for it, the grouped convolution, and on each platform a better way exists for
some or all layers. The figures are for training MobileNetV2 at 224 pixels; those of TPU and GPU
are the estimates of XLA's compilers (`experiments.speed.compilers`), with 256 images per chip in
bfloat16.

  CPU   Forward, the grouped convolution is about ten times slower than the arithmetic needs. Its
        weight gradient computes the full C x C convolution and keeps only the diagonal. Therefore
        all is done as shifted products. The gradient for the kernel is k*k sums (nine for 3x3)
        over the whole batch. One scan over chunks of a few images computes all of them, so that a
        chunk stays in cache for all k*k sums. The products are added row by row, which XLA
        vectorises over channels. A product that contracts the whole image makes XLA copy each of
        the k*k windows first: a step with batch 32 takes 1.23 s with it and 0.98 s without it. XLA
        runs a scan on one thread, in parallel with any other operation that is ready. For this
        reason the gradient for the images is not part of the scan: the same step takes 1.03 s with
        it inside and 0.88 s with it outside.
  CUDA  cuDNN's convolutions need ReLU6, the zeros around the images and the mask of ReLU6's
        gradient as separate passes over memory. Shifted products have them in the same pass: the
        traffic of a step falls from 49.0 to 43.7 GB, but their instructions take longer than their
        bytes. The kernels of `depthwise_triton` have both gradients in one pass as well, and need
        few instructions: an H100 needs at least 11.4 ms instead of 17.5 for a step. With
        `depthwise_norm` they have parts of batch norm, too. None of this was measured on a GPU.
        Where the kernels do not compile, shifted products are used, and the gradient for the kernel
        is cuDNN's, because XLA would write the k*k products to memory (82.7 GB).
  TPU   The grouped convolution runs on the vector unit. For up to 32 channels a standard
        convolution with a diagonal kernel, which runs on the matrix unit, takes a third of its
        cycles (2.2 instead of 7.3 million for 32 channels at 112 pixels, v5e): a step takes 105.9
        instead of 115.7 million. For wider layers and for stride 2 it takes more. Slices of 32
        channels are faster alone, but nothing is fused with them any more (116.1 million).

The implementation is chosen when the program is lowered, not when it is traced. A program that a
machine with a CPU exports for a TPU therefore contains the form for the TPU.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mnv2.ops import shifted_products
from mnv2.ops.arrays import Convolved, Images, ImagesAndKernel, Kernel
from mnv2.ops.conv import conv
from mnv2.ops.padding import Padding
from mnv2.ops.platforms import platform_dependent, platform_of
from mnv2.ops.relu6 import relu6
from mnv2.ops.shifted_products import DepthwiseOptions
from mnv2.runtime.terminal import warn

# On TPU, layers with at most this many channels and stride 1 are standard convolutions.
DIAGONAL_CHANNELS = 32


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def depthwise_conv(
    images: Images, kernel: Kernel, stride: int, padding: Padding, of_relu6: bool = False
) -> Convolved:
    """Convolves every channel with its own filter (MobileNetV1, equation 3).

    With `of_relu6`, it convolves relu6(images) instead. ReLU6 then shares one pass over memory with
    the convolution, forward and backward. Sums are computed in float32 if the images have half
    precision; the result has the type of the images.
    """
    options = DepthwiseOptions(stride, padding, of_relu6)
    return platform_dependent(
        images,
        kernel,
        cpu=functools.partial(shifted_products.convolve, options=options),
        cuda=functools.partial(_convolve_on_cuda, options=options),
        tpu=functools.partial(_convolve_on_tpu, options=options),
        default=functools.partial(_grouped_conv, options=options),
    )


def _forward(
    images: Images, kernel: Kernel, stride: int, padding: Padding, of_relu6: bool
) -> tuple[Convolved, ImagesAndKernel]:
    return depthwise_conv(images, kernel, stride, padding, of_relu6), (images, kernel)


def _backward(
    stride: int, padding: Padding, of_relu6: bool, saved: ImagesAndKernel, gradient: Convolved
) -> ImagesAndKernel:
    return gradients(*saved, gradient, DepthwiseOptions(stride, padding, of_relu6))


depthwise_conv.defvjp(_forward, _backward)


def gradients(
    images: Images, kernel: Kernel, gradient: Convolved, options: DepthwiseOptions
) -> ImagesAndKernel:
    """Returns the gradients for images and kernel, given that for the result."""
    return platform_dependent(
        images,
        kernel,
        gradient,
        cpu=functools.partial(_gradients_on_cpu, options=options),
        cuda=functools.partial(_gradients_on_cuda, options=options),
        tpu=functools.partial(_gradients_on_tpu, options=options),
        default=functools.partial(_gradients_of_grouped_conv, options=options),
    )


def _grouped_conv(images: Images, kernel: Kernel, options: DepthwiseOptions) -> Convolved:
    images = relu6(images) if options.of_relu6 else images
    return conv(images, kernel, options.stride, options.padding, groups=images.shape[-1])


def _gradients_of_grouped_conv(
    images: Images, kernel: Kernel, gradient: Convolved, options: DepthwiseOptions
) -> ImagesAndKernel:
    convolve = functools.partial(_grouped_conv, options=options)
    return jax.vjp(convolve, images, kernel)[1](gradient)


def _gradients_on_cpu(
    images: Images, kernel: Kernel, gradient: Convolved, options: DepthwiseOptions
) -> ImagesAndKernel:
    dilated = shifted_products.dilate(gradient, images, len(kernel), options)
    if options.stride == 1:
        # Both gradients read this tensor. Without the barrier XLA would compute it twice, which
        # costs 2 % of a step.
        dilated = lax.optimization_barrier(dilated)
    return (
        shifted_products.image_gradient(images, kernel, dilated, options),
        shifted_products.kernel_gradient(images, kernel, gradient, dilated, options),
    )


@functools.cache
def kernels_for_cuda() -> Any:
    """Returns the module with kernels for CUDA; None without a GPU, or if they do not compile.

    Each is compiled once to see that, which takes half a second: the choice between platforms could
    not do without a kernel that fails later. Without a GPU, Pallas cannot compile for one, unless
    it is told which (`experiments.speed.compilers`).
    """
    if platform_of(jax.devices()[0]) != "cuda":
        return None
    try:
        # Imported late: it takes 0.1 s, and JAX will remove Pallas' Triton backend some day.
        from mnv2.ops import depthwise_triton

        depthwise_triton.compile_small()
    except Exception as error:
        warn(f"depthwise convolutions are slower: kernels for this GPU do not compile: {error}")
        return None
    return depthwise_triton


# XLA leaves out a rounding to bfloat16 that float32 arithmetic follows, and would then write these
# tensors to memory as float32. The barriers keep them small: without them a step moves 52.5 GB.


def _convolve_on_cuda(images: Images, kernel: Kernel, options: DepthwiseOptions) -> Convolved:
    if kernels := kernels_for_cuda():
        return kernels.convolve(images, kernel, options)[0]
    return lax.optimization_barrier(shifted_products.convolve(images, kernel, options))


def _gradients_on_cuda(
    images: Images, kernel: Kernel, gradient: Convolved, options: DepthwiseOptions
) -> ImagesAndKernel:
    if kernels := kernels_for_cuda():
        return kernels.gradients(images, kernel, gradient, options)
    gradient = lax.optimization_barrier(gradient)
    dilated = shifted_products.dilate(gradient, images, len(kernel), options)
    image_gradient = shifted_products.image_gradient(images, kernel, dilated, options)
    _, kernel_gradient = _gradients_of_grouped_conv(images, kernel, gradient, options)
    return lax.optimization_barrier(image_gradient), kernel_gradient


def _convolve_on_tpu(images: Images, kernel: Kernel, options: DepthwiseOptions) -> Convolved:
    if options.stride > 1 or images.shape[-1] > DIAGONAL_CHANNELS:
        return _grouped_conv(images, kernel, options)
    images = relu6(images) if options.of_relu6 else images
    diagonal = kernel * jnp.eye(images.shape[-1], dtype=kernel.dtype)
    return conv(images, diagonal, options.stride, options.padding)


def _gradients_on_tpu(
    images: Images, kernel: Kernel, gradient: Convolved, options: DepthwiseOptions
) -> ImagesAndKernel:
    convolve = functools.partial(_convolve_on_tpu, kernel=kernel, options=options)
    (image_gradient,) = jax.vjp(convolve, images)[1](gradient)
    return image_gradient, _gradients_of_grouped_conv(images, kernel, gradient, options)[1]
