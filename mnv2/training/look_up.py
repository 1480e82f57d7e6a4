"""Training images from a data set that lies on the device."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8


def look_up(
    images: UInt8[Array, "n h w c"], rows: Mapping[str, Array | np.ndarray], pad: int
) -> UInt8[Array, "b h w c"]:
    """Returns the images of a batch, augmented as its `data.Rows` say.

    With `top` and `left` an image is padded by `pad` zero pixels and cropped there, back to its
    size; where `mirrored` is true it is mirrored left to right.
    """
    batch = images[rows["index"]]
    if "top" in rows:
        padded = jnp.pad(batch, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

        def crop(image: Array, top: Any, left: Any) -> Array:
            return jax.lax.dynamic_slice(image, (top, left, jnp.zeros_like(top)), batch.shape[1:])

        batch = jax.vmap(crop)(padded, rows["top"], rows["left"])
    if "mirrored" in rows:
        batch = jnp.where(rows["mirrored"][:, None, None, None], batch[:, :, ::-1], batch)
    return batch
