"""The activation of both MobileNets."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def relu6(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """min(max(x, 0), 6): MobileNetV2 section 3.3, robust in low precision."""
    return jnp.clip(x, 0, 6)
