"""From a picture to what a network with someone's weights expects of it, in evaluation."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

METHODS = ("mnv2", "slim", "bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How a family's evaluation crops, resizes and normalises.

    method     mnv2      as this package trains: a picture of the right size as it is, any other
                         as `slim` does, on today's grid of pixels
               slim      the central `crop` of height and width, resized to the input without
                         keeping its aspect (slim, Keras)
               bilinear  shorter side to input / `crop`, then the centre (torchvision)
               bicubic   the same with a bicubic filter (timm)
    crop       fraction of each side that is seen
    mean, std  of pixels in [0, 1]: the network sees (pixel - mean) / std
    """

    method: str = "mnv2"
    crop: float = 0.875
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Normalises images in [0, 255] that have the network's size already."""
        unit = jnp.asarray(images, jnp.float32) / 255
        return (unit - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def view(self, picture: Any, size: tuple[int, int]) -> Any:
        """What is seen of pictures (... h w c, uint8): tensors (... size c) in [0, 255]."""
        import tensorflow as tf  # takes seconds, and only pictures need it

        if self.method == "mnv2" and tuple(picture.shape[-3:-1]) == size:
            return tf.cast(picture, tf.float32)
        if self.method in ("mnv2", "slim"):
            picture = tf.image.central_crop(picture, self.crop)
            if self.method == "mnv2":
                return tf.image.resize(picture, size)
            # slim's grid, TensorFlow 1's: pixels are points at whole numbers, not squares.
            batch = picture if picture.shape.rank == 4 else picture[None]
            resized = tf.compat.v1.image.resize_bilinear(batch, size, align_corners=False)
            return resized if picture.shape.rank == 4 else resized[0]
        height, width = tf.unstack(tf.shape(picture)[-3:-1])
        shorter = tf.minimum(height, width)
        target = int(min(size) / self.crop)
        resized = tf.image.resize(
            picture,
            (target * height // shorter, target * width // shorter),
            self.method,
            antialias=True,
        )
        # As the 8-bit picture that PIL makes of it.
        resized = tf.clip_by_value(tf.round(resized), 0, 255)
        (top, left) = (_half(tf.shape(resized)[-3 + axis] - size[axis]) for axis in (0, 1))
        cropped = resized[..., top : top + size[0], left : left + size[1], :]
        cropped.set_shape((*picture.shape[:-3], *size, picture.shape[-1]))
        return cropped


def _half(difference: Any) -> Any:
    """Where torchvision's centre crop begins: half, rounded to the even of two neighbours."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.cast(difference, tf.float32) / 2), tf.int32)
