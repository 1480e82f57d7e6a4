"""The type in which sums are computed."""

from typing import Any

import jax.numpy as jnp


def accumulator(dtype: Any) -> jnp.dtype:
    """Returns float32 for a type of lower precision, and any other type unchanged."""
    return jnp.promote_types(dtype, jnp.float32)
