"""Preprocessing for evaluation, as the authors of pretrained weights do it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

METHODS = ("mnv2", "slim", "bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How evaluation crops, resizes and normalises pictures.

    method     mnv2      as this package trains: a picture of the right size is unchanged, any other
                         picture is treated as in `slim`, on the pixel grid of TensorFlow 2
               slim      the central `crop` of height and width, resized to the input size without
                         keeping the aspect ratio (slim, Keras)
               bilinear  the shorter side is resized to input size / `crop`, then the centre is
                         cropped (torchvision)
               bicubic   the same with a bicubic filter (timm)
    crop       the fraction of each side that is kept
    mean, std  of pixels in [0, 1]: the network gets (pixel - mean) / std
    """

    method: str = "mnv2"
    crop: float = 0.875
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Normalises images (... c) in [0, 255] that already have the network's size."""
        unit = jnp.asarray(images, jnp.float32) / 255
        return (unit - jnp.asarray(self.mean)) / jnp.asarray(self.std)

    def crop_and_resize(self, pictures: Any, size: tuple[int, int]) -> Any:
        """Brings pictures (... h w c, uint8) to `size`, (height, width).

        Returns a float32 tensor (... height width c) in [0, 255].
        """
        import tensorflow as tf  # the import takes seconds, and only pictures need it

        if self.method == "mnv2" and tuple(pictures.shape[-3:-1]) == size:
            return tf.cast(pictures, tf.float32)
        if self.method in ("mnv2", "slim"):
            pictures = tf.image.central_crop(pictures, self.crop)
            if self.method == "mnv2":
                return tf.image.resize(pictures, size)
            # The grid of slim and TensorFlow 1: a pixel is a point at whole numbers, not a square.
            batch = pictures if pictures.shape.rank == 4 else pictures[None]
            resized = tf.compat.v1.image.resize_bilinear(batch, size, align_corners=False)
            return resized if pictures.shape.rank == 4 else resized[0]
        height, width = tf.unstack(tf.shape(pictures)[-3:-1])
        shorter = tf.minimum(height, width)
        target = int(min(size) / self.crop)
        resized = tf.image.resize(
            pictures,
            (target * height // shorter, target * width // shorter),
            self.method,
            antialias=True,
        )
        # PIL, which torchvision and timm use, rounds the result to 8 bits.
        resized = tf.clip_by_value(tf.round(resized), 0, 255)
        (top, left) = (_half(tf.shape(resized)[-3 + axis] - size[axis]) for axis in (0, 1))
        cropped = resized[..., top : top + size[0], left : left + size[1], :]
        cropped.set_shape((*pictures.shape[:-3], *size, pictures.shape[-1]))
        return cropped


def _half(difference: Any) -> Any:
    """Returns where torchvision's centre crop begins: half of `difference`, ties to even."""
    import tensorflow as tf

    return tf.cast(tf.round(tf.cast(difference, tf.float32) / 2), tf.int32)
