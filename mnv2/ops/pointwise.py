"""1x1 convolution: a matrix product over channels.

On GPU and TPU this is XLA's convolution. XLA's CPU backend transposes the images to compute that
one's kernel gradient, and those of an einsum over four axes too: a third of a training step of
MobileNetV2 at 224 pixels, batch 32. On CPU it is a product of two matrices, and so are its
gradients.
"""

import functools

import jax
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.conv import conv


@jax.custom_vjp
def pointwise_conv(
    images: Float[Array, "n h w c"], kernel: Float[Array, "1 1 c d"]
) -> Float[Array, "n h w d"]:
    """Mixes the channels of every pixel (MobileNetV1, section 3.1)."""
    return lax.platform_dependent(images, kernel, cpu=_product, default=_conv)


def _forward(images, kernel):
    return pointwise_conv(images, kernel), (images, kernel)


def _backward(saved, gradient):
    return lax.platform_dependent(
        *saved, gradient, cpu=_gradients_of_product, default=gradients_of_conv
    )


pointwise_conv.defvjp(_forward, _backward)


def _conv(images, kernel):
    return conv(images, kernel, 1, ((0, 0), (0, 0)))


def gradients_of_conv(images, kernel, gradient):
    return jax.vjp(_conv, images, kernel)[1](gradient)


def _product(images, kernel):
    rows, columns = _rows(images), kernel[0, 0]
    return (rows @ columns).reshape(*images.shape[:3], -1)


def _gradients_of_product(images, kernel, gradient):
    rows, gradients = _rows(images), _rows(gradient)
    contract = functools.partial(lax.dot_general, preferred_element_type=kernel.dtype)
    # Neither operand is transposed in memory: channels stay the fast axis of both.
    kernel_gradient = contract(rows, gradients, (((0,), (0,)), ((), ())))
    image_gradient = contract(gradients, kernel[0, 0], (((1,), (1,)), ((), ())))
    return image_gradient.reshape(images.shape), kernel_gradient[None, None]


def _rows(images: Array) -> Array:
    return images.reshape(-1, images.shape[-1])
