"""Batch norm with a backward pass in two sweeps over the image instead of five.

Automatic differentiation of the textbook formula leaves XLA several reductions with selects and
broadcasts inside, which its CPU backend runs far below memory speed. Written out, the gradient
needs two sums, of `g` and of `g * x`, and one linear combination of `g` and `x`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops.precision import accumulator


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize_batch(
    x: Float[Array, "n h w c"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    epsilon: float,
    axis_name: str | None,
) -> tuple[Float[Array, "n h w c"], Float[Array, " c"], Float[Array, " c"]]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias, the batch's mean and its biased variance.

    Mean and variance are for running averages: no gradient flows through them.
    """
    return forward(x, scale, bias, epsilon, axis_name)[0]


def forward(x, scale, bias, epsilon, axis_name):
    dtype = accumulator(x.dtype)
    total = sum_over_devices(jnp.sum(x, (0, 1, 2), dtype=dtype), axis_name)
    squares = sum_over_devices(_sum_of_products(x, x), axis_name)
    pixels = count(x, axis_name)
    mean = total / pixels
    var = jnp.maximum(squares / pixels - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    y = x * (inverse * scale) + (bias - mean * inverse * scale)
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def backward(epsilon, axis_name, saved, gradients):
    x, scale, mean, inverse = saved
    g, _, _ = gradients
    local_g = jnp.sum(g, (0, 1, 2), dtype=mean.dtype)
    local_gx = _sum_of_products(g, x)
    sum_g = sum_over_devices(local_g, axis_name)
    sum_gx = sum_over_devices(local_gx, axis_name)
    factor, slope, offset = coefficients(scale, mean, inverse, sum_g, sum_gx, count(x, axis_name))
    g_x = (factor * g + slope * x + offset).astype(x.dtype)
    # Parameters' gradients are each device's own: whoever averages gradients adds them up.
    return g_x, (local_gx - mean * local_g) * inverse, local_g


normalize_batch.defvjp(forward, backward)


def coefficients(
    scale: Float[Array, " c"],
    mean: Float[Array, " c"],
    inverse: Float[Array, " c"],
    sum_g: Float[Array, " c"],
    sum_gx: Float[Array, " c"],
    pixels: int,
) -> tuple[Float[Array, " c"], Float[Array, " c"], Float[Array, " c"]]:
    """(factor, slope, offset): the gradient for x is factor * g + slope * x + offset.

    That is scale/std * (g - mean(g) - x_hat * mean(g * x_hat)), with x_hat = (x - mean)/std and
    `inverse` = 1/std; sums are over all pixels of all devices.
    """
    factor = scale * inverse
    slope = -factor * inverse * inverse * (sum_gx - mean * sum_g) / pixels
    return factor, slope, -mean * slope - factor * sum_g / pixels


def _sum_of_products(a: Array, b: Array) -> Array:
    dtype = accumulator(a.dtype)
    return jnp.einsum("nhwc,nhwc->c", a, b, preferred_element_type=dtype)


def sum_over_devices(value: Array, axis_name: str | None) -> Array:
    """`value` summed over the axis, or as it is where there is none."""
    return value if axis_name is None else lax.psum(value, axis_name)


def count(x: Array, axis_name: str | None) -> int:
    """Pixels of all devices' images together."""
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    return devices * x.size // x.shape[-1]
