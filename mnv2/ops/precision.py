"""The type in which sums are kept."""

import jax.numpy as jnp


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """float32 for numbers of less precision, else their own type."""
    return jnp.promote_types(dtype, jnp.float32)
