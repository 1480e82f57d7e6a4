"""Batch norm as a layer, with its parameters and running statistics."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mnv2.ops import Axis, normalize_batch


class BatchNorm(nn.Module):
    """Normalises each channel over batch and image (arXiv 1502.03167), then scales and shifts.

    In training it uses the statistics of the batch, over all devices of `axis_name` together. It
    keeps running averages of them, `new = momentum * old + (1 - momentum) * batch` with the biased
    variance, and uses these averages in evaluation. Parameters and statistics are float32. The
    result has type `dtype`.

    `normalize` is what computes it in training: an operation of `mnv2.ops`, which can include the
    convolution before the batch norm where both together are faster.
    """

    features: int
    momentum: float = 0.99
    epsilon: float = 1e-3
    axis_name: Axis = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool,
        normalize: Callable[..., tuple[Array, Array, Array]] = normalize_batch,
    ) -> Float[Array, "n h2 w2 d"]:
        shape = (self.features,)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if not train:
            factor = scale * lax.rsqrt(running_var.value + self.epsilon)
            return (x * factor + (bias - running_mean.value * factor)).astype(self.dtype)
        # No device axis exists while the parameters are initialised.
        axis_name = None if self.is_initializing() else self.axis_name
        y, mean, var = normalize(x, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            running_mean.value = _average(running_mean.value, mean, self.momentum)
            running_var.value = _average(running_var.value, var, self.momentum)
        return y.astype(self.dtype)


def _average(
    old: Float[Array, " c"], new: Float[Array, " c"], momentum: float
) -> Float[Array, " c"]:
    return momentum * old + (1 - momentum) * new
