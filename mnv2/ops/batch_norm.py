"""Batch norm with a backward pass in two sweeps over the image instead of five.

Automatic differentiation of the textbook formula leaves XLA several reductions with selects and
broadcasts inside, which its CPU backend runs far below memory speed. Written out, the gradient
needs two sums, of `g` and of `g * x`, and one linear combination of `g` and `x`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


class BatchNorm(nn.Module):
    """Normalises each channel over batch and image (arXiv 1502.03167), then scales and shifts.

    In training by the statistics of the batch, over all devices of `axis_name` together, and keeps
    running averages of them, `new = momentum * old + (1 - momentum) * batch` with the biased
    variance; in evaluation by the running averages. Parameters and statistics are float32, the
    result has type `dtype`.
    """

    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"], train: bool) -> Float[Array, "n h w c"]:
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(self.dtype)
        # No device axis is bound while the parameters are made.
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = normalize_batch(x, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            running_mean.value = _average(running_mean.value, mean, self.momentum)
            running_var.value = _average(running_var.value, var, self.momentum)
        return y.astype(self.dtype)


def _average(old: Array, new: Array, momentum: float) -> Array:
    return momentum * old + (1 - momentum) * new


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
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    total = _sum_over_devices(jnp.sum(x, (0, 1, 2), dtype=dtype), axis_name)
    squares = _sum_over_devices(_sum_of_products(x, x), axis_name)
    count = _count(x, axis_name)
    mean = total / count
    var = jnp.maximum(squares / count - mean * mean, 0)
    inverse = lax.rsqrt(var + epsilon)
    y = x * (inverse * scale) + (bias - mean * inverse * scale)
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _backward(epsilon, axis_name, saved, gradients):
    x, scale, mean, inverse = saved
    g, _, _ = gradients
    local_g = jnp.sum(g, (0, 1, 2), dtype=mean.dtype)
    local_gx = _sum_of_products(g, x)
    sum_g = _sum_over_devices(local_g, axis_name)
    sum_gx = _sum_over_devices(local_gx, axis_name)
    # g_x = scale/std * (g - mean(g) - x_hat * mean(g * x_hat)), with x_hat = (x - mean)/std,
    # written as factor * g + slope * x + offset.
    count = _count(x, axis_name)
    factor = scale * inverse
    slope = -factor * inverse * inverse * (sum_gx - mean * sum_g) / count
    offset = -mean * slope - factor * sum_g / count
    g_x = (factor * g + slope * x + offset).astype(x.dtype)
    # Parameters' gradients are each device's own: whoever averages gradients adds them up.
    return g_x, (local_gx - mean * local_g) * inverse, local_g


normalize_batch.defvjp(_forward, _backward)


def _sum_of_products(a: Array, b: Array) -> Array:
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum("nhwc,nhwc->c", a, b, preferred_element_type=dtype)


def _sum_over_devices(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else lax.psum(value, axis_name)


def _count(x: Array, axis_name: str | None) -> int:
    devices = 1 if axis_name is None else lax.axis_size(axis_name)
    return devices * x.size // x.shape[-1]
