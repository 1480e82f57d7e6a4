"""The type in which sums are kept."""

from typing import Any

import jax.numpy as jnp


def accumulator(dtype: Any) -> jnp.dtype:
    """float32 for numbers of less precision, else their own type."""
    return jnp.promote_types(dtype, jnp.float32)
