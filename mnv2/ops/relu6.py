"""The activation function of both MobileNets."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes min(max(x, 0), 6), which is robust in low precision (MobileNetV2, section 3.3)."""
    return jnp.clip(x, 0, 6)


def before_relu6(
    gradient: Float[Array, "*shape"], x: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """Returns the gradient for x, given the gradient for relu6(x)."""
    return jnp.where((x > 0) & (x < 6), gradient, 0)
