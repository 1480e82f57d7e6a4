"""The activation function of both MobileNets."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Computes min(max(x, 0), 6), which is robust in low precision (MobileNetV2, section 3.3)."""
    return jnp.clip(x, 0, 6)
