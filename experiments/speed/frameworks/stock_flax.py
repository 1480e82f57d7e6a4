"""The networks and their training step in plain Flax and Optax, as a baseline for speed."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from mnv2.models import STRIDES, mobilenet_v1, mobilenet_v2, resnet
from mnv2.models.blocks import linear, make_divisible, relu6


class StockNetwork(nn.Module):
    """A network of `mnv2.models`, made of nn.Conv with feature_group_count and nn.BatchNorm.

    The fields are those of `mnv2.models.create_model`.
    """

    network: str
    width: float = 1.0
    strides: tuple[int, ...] | str = "imagenet"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"], train: bool) -> Float[Array, "n 1000"]:
        def conv_bn(
            x: Array,
            channels: int,
            size: int,
            stride: int = 1,
            groups: int = 1,
            act: Callable[[Array], Array] = relu6,
        ) -> Array:
            conv = nn.Conv(
                channels,
                (size, size),
                stride,
                feature_group_count=groups,
                use_bias=False,
                dtype=self.dtype,
            )
            norm = nn.BatchNorm(not train, momentum=0.99, epsilon=1e-3, dtype=self.dtype)
            return act(norm(conv(x)))

        layers = {
            "mobilenet_v1": self.separable,
            "mobilenet_v2": self.inverted_residuals,
            "resnet50": self.hourglasses,
        }
        x = layers[self.network](conv_bn, images).astype(jnp.float32)
        return nn.Dense(1000)(jnp.mean(x, (1, 2)))

    def _strides(self) -> tuple[int, ...]:
        if isinstance(self.strides, str):
            return STRIDES[self.network][self.strides]
        return self.strides

    def separable(self, conv_bn: Callable[..., Any], images: Array) -> Array:
        stem, *features = mobilenet_v1.scaled_channels(self.width)
        stem_stride, *strides = self._strides()
        x = conv_bn(images, stem, 3, stem_stride)
        for channels, stride in zip(features, strides, strict=True):
            x = conv_bn(x, x.shape[-1], 3, stride, x.shape[-1])
            x = conv_bn(x, channels, 1)
        return x

    def inverted_residuals(self, conv_bn: Callable[..., Any], images: Array) -> Array:
        channels = mobilenet_v2.scaled_channels(self.width)
        stem_stride, *strides = self._strides()
        x = conv_bn(images, channels.stem, 3, stem_stride)
        rows = mobilenet_v2.blocks(channels.rows, mobilenet_v2.REPEATS, strides)
        for i, (features, stride) in enumerate(rows):
            y = conv_bn(x, make_divisible(6 * x.shape[-1]), 1) if i else x
            y = conv_bn(y, y.shape[-1], 3, stride, y.shape[-1])
            y = conv_bn(y, features, 1, act=linear)
            x = x + y if x.shape == y.shape else y
        return conv_bn(x, channels.last, 1)

    def hourglasses(self, conv_bn: Callable[..., Any], images: Array) -> Array:
        stem, pool, *strides = self._strides()
        relu = nn.relu
        channels = make_divisible(64 * self.width)
        x = conv_bn(images, channels, 3 if stem == 1 else 7, stem, act=relu)
        if pool > 1:
            x = nn.max_pool(x, (3, 3), (pool, pool), "SAME")
        for (wide, repeats), first in zip(resnet.STAGES, strides, strict=True):
            features = make_divisible(wide * self.width)
            for stride in (first, *[1] * (repeats - 1)):
                y = conv_bn(x, features // 4, 1, act=relu)
                y = conv_bn(y, features // 4, 3, stride, act=relu)
                y = conv_bn(y, features, 1, act=linear)
                shortcut = x if x.shape == y.shape else conv_bn(x, features, 1, stride, act=linear)
                x = relu(shortcut + y)
        return x


def sgd_step(
    model: nn.Module, learning_rate: float
) -> tuple[optax.GradientTransformation, Callable[..., Any]]:
    """Returns SGD with momentum, and a step of any network with it, which is not compiled yet.

    The step takes the parameters, the statistics of batch norm, the state of the optimiser, images
    and labels. It returns the first three as they are after the step, and the loss.
    """
    optimizer = optax.sgd(learning_rate, momentum=0.9)

    def loss_of(params: Any, statistics: Any, images: Any, labels: Any) -> Any:
        logits: Any
        logits, changed = model.apply(
            {"params": params, "batch_stats": statistics},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), changed["batch_stats"]

    def step(params: Any, statistics: Any, state: Any, images: Any, labels: Any) -> Any:
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, statistics, images, labels
        )
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), statistics, state, loss

    return optimizer, step
