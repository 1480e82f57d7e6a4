"""Networks made ready for inference: the same function of the images, in less time and memory."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
from jax import lax
from jaxtyping import Array, Float

# On CPU a batch goes through the network in slices: their tensors stay in cache, and weights are
# read once a slice. MobileNetV2 at 224 pixels, batch 32, two cores: 141 images/s at once, 161 in
# slices of 1, 181 in slices of 4.
IMAGES_AT_ONCE = 4


def for_inference(
    model: nn.Module, variables: Mapping[str, Any]
) -> Callable[[Float[Array, "n h w c"]], Float[Array, "n classes"]]:
    """A compiled function of images that gives `model`'s logits in evaluation.

    Batch norm is folded into the convolutions, and on CPU the batch goes slice by slice.
    """
    folded = fold_batch_norm(model, variables)

    def apply(images: Array) -> Array:
        logits: Any = model.apply(folded, images, train=False)
        return logits

    def in_slices(images: Array) -> Array:
        if images.shape[0] <= IMAGES_AT_ONCE:
            return apply(images)
        return lax.map(lambda image: apply(image[None])[0], images, batch_size=IMAGES_AT_ONCE)

    return jax.jit(lambda images: lax.platform_dependent(images, cpu=in_slices, default=apply))


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables with which `model` computes the same in evaluation, without batch norm.

    conv(x, w) * factor + shift = conv(x, w * factor) + shift. The result has no `batch_stats`,
    and cannot be trained on.
    """
    epsilon = model.bn_epsilon

    def fold(params: Any, statistics: Any) -> Any:
        if "bn" not in params:
            return {
                name: fold(value, statistics[name]) if name in statistics else value
                for name, value in params.items()
            }
        batch_norm, running = params["bn"], statistics["bn"]
        factor = batch_norm["scale"] * lax.rsqrt(running["var"] + epsilon)
        bias = batch_norm["bias"] - running["mean"] * factor
        return {"kernel": params["kernel"] * factor, "bias": bias}

    return {"params": fold(variables["params"], variables["batch_stats"])}
