"""1x1 convolution: a matrix product over channels.

On GPU and TPU this is the convolution of XLA. On CPU, XLA transposes the images to compute the
gradient for that convolution's kernel, and also for an einsum over four axes. This takes a third
of a training step of MobileNetV2 at 224 pixels, batch 32. Therefore, on CPU, the convolution is a
product of two matrices, and so is each of its gradients.
"""

import functools

import jax
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.arrays import Images, Weights, Wide
from mnv2.ops.conv import conv
from mnv2.ops.platforms import platform_dependent

# The images and the kernel, or the gradients for both.
ImagesAndKernel = tuple[Images, Weights]


@jax.custom_vjp
def pointwise_conv(images: Images, kernel: Weights) -> Wide:
    """Mixes the channels of every pixel (MobileNetV1, section 3.1)."""
    return platform_dependent(images, kernel, cpu=_product, default=_conv)


def _forward(images: Images, kernel: Weights) -> tuple[Wide, ImagesAndKernel]:
    return pointwise_conv(images, kernel), (images, kernel)


def _backward(saved: ImagesAndKernel, gradient: Wide) -> ImagesAndKernel:
    return platform_dependent(
        *saved, gradient, cpu=_gradients_of_product, default=gradients_of_conv
    )


pointwise_conv.defvjp(_forward, _backward)


def _conv(images: Images, kernel: Weights) -> Wide:
    return conv(images, kernel, 1, ((0, 0), (0, 0)))


def gradients_of_conv(images: Images, kernel: Weights, gradient: Wide) -> ImagesAndKernel:
    """Returns the gradients for images and kernel as XLA's convolution computes them."""
    return jax.vjp(_conv, images, kernel)[1](gradient)


def _product(images: Images, kernel: Weights) -> Wide:
    return (_pixels(images) @ kernel[0, 0]).reshape(*images.shape[:3], -1)


def _gradients_of_product(images: Images, kernel: Weights, gradient: Wide) -> ImagesAndKernel:
    pixels, gradients = _pixels(images), _pixels(gradient)
    contract = functools.partial(lax.dot_general, preferred_element_type=kernel.dtype)
    # Neither operand is transposed in memory: in both, the channels stay the fastest axis.
    kernel_gradient = contract(pixels, gradients, (((0,), (0,)), ((), ())))
    image_gradient = contract(gradients, kernel[0, 0], (((1,), (1,)), ((), ())))
    return image_gradient.reshape(images.shape), kernel_gradient[None, None]


def _pixels(images: Images) -> Float[Array, "pixels c"]:
    return images.reshape(-1, images.shape[-1])
