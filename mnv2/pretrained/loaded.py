"""A network with its weights, and how to use it."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from mnv2.models import for_inference
from mnv2.ops.precision import accumulator
from mnv2.pretrained import imagenet
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda x: x,
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "swish": jax.nn.silu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
}


class DenseHead(nn.Module):
    """A backbone with several dense layers, (units, activation) each, over its pooled features."""

    backbone: Any
    layers: tuple[tuple[int, str], ...]

    @property
    def conventions(self) -> Any:
        """Those of the backbone, to which all batch norm belongs."""
        return self.backbone.conventions

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"], train: bool = False
    ) -> Float[Array, "n classes"]:
        x: Any = self.backbone(images, train)
        for i, (units, activation) in enumerate(self.layers):
            x = ACTIVATIONS[activation](nn.Dense(units, name=f"dense_{i}")(x))
        return x


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A network with its weights and everything that is known about how to use it.

    model         the network; it returns logits, or pooled features if it has no classifier
    variables     its parameters and batch statistics, for `model.apply`
    preprocess    normalises RGB images in [0, 255] when it is called; its other fields say how
                  `preprocess.view_of` gives what brings pictures to the right size
    image_size    (height, width) for which the weights were trained
    class_names   one per logit; None if the file does not contain them
    output        the function from logits to probabilities: softmax, or sigmoid for classes that do
                  not exclude each other and for a single logit that separates two classes
    """

    model: nn.Module
    variables: dict[str, Any]
    preprocess: Preprocessing
    image_size: tuple[int, int] = (224, 224)
    class_names: tuple[str, ...] | None = None
    output: str = "softmax"

    @property
    def num_classes(self) -> int:
        """The number of logits; 0 for a network without a classifier."""
        model: Any = self.model
        return model.layers[-1][0] if isinstance(model, DenseHead) else model.num_classes

    @property
    def channels(self) -> int:
        """The channels of the images that the network takes: 3, or 1 for grayscale images."""
        params = self.variables["params"]
        return params.get("backbone", params)["stem"]["kernel"].shape[2]

    @property
    def display_names(self) -> tuple[str, ...]:
        """The names of the classes, in words for synsets of ImageNet; class 0, ... if not known."""
        if self.class_names is not None:
            return tuple(map(imagenet.readable, self.class_names))
        return tuple(f"class {i}" for i in range(2 if self.num_classes == 1 else self.num_classes))

    def logits(self, variables: Any, images: ArrayLike) -> Float[Array, "n classes"]:
        """Computes the logits of images (n h w c) in [0, 255].

        A single logit x that separates two classes becomes the two logits 0 and x.
        """
        logits: Any = self.model.apply(variables, self.preprocess(images), train=False)
        return self.of_each_class(logits)

    def logits_for_inference(self) -> Callable[[ArrayLike], Float[Array, "n classes"]]:
        """Returns a fast compiled function from images in [0, 255] to the logits of `logits`."""
        apply = for_inference(self.model, self.variables)
        return jax.jit(lambda images: self.of_each_class(apply(self.preprocess(images))))

    def probabilities(self, images: ArrayLike) -> Float[Array, "n classes"]:
        """Computes the probability of each class for images (n h w c) in [0, 255]."""
        logits = self._logits_for_inference(images)
        logits = logits.astype(accumulator(logits.dtype))
        exclusive = self.output == "softmax" or self.num_classes == 1
        return jax.nn.softmax(logits) if exclusive else jax.nn.sigmoid(logits)

    @functools.cached_property
    def _logits_for_inference(self) -> Callable[[ArrayLike], Float[Array, "n classes"]]:
        return self.logits_for_inference()

    def of_each_class(self, logits: Array) -> Float[Array, "n classes"]:
        """Returns one logit per class: 0 and x for a single logit x that separates two."""
        if self.num_classes == 1:
            return logits * jnp.array([0, 1], logits.dtype)
        return logits

    def backbone(self) -> "Pretrained":
        """Returns the network without classifier or dense layers; it gives pooled features."""
        model: Any = self.model
        if isinstance(model, DenseHead):
            variables = {kind: values["backbone"] for kind, values in self.variables.items()}
            model = model.backbone
        else:
            params = {x: y for x, y in self.variables["params"].items() if x != "classifier"}
            model, variables = model.clone(num_classes=0), {**self.variables, "params": params}
        return dataclasses.replace(self, model=model, variables=variables, class_names=None)

    def with_class_names(self, names: Sequence[str], source: str) -> "Pretrained":
        """Gives the classes other names. Raises UserError if `source` has too many or too few."""
        if len(names) != (count := len(self.display_names)):
            raise UserError(f"{source} names {len(names)} classes but the weights know {count}")
        return dataclasses.replace(self, class_names=tuple(names))

    def without_background(self) -> "Pretrained":
        """Removes the first of 1001 classes, which is the background in slim.

        A network with another number of classes, or with a `DenseHead`, is returned unchanged.
        """
        if self.num_classes != 1001 or isinstance(self.model, DenseHead):
            return self
        classifier = {k: v[..., 1:] for k, v in self.variables["params"]["classifier"].items()}
        params = {**self.variables["params"], "classifier": classifier}
        return dataclasses.replace(
            self,
            model=self.model.clone(num_classes=1000),
            variables={**self.variables, "params": params},
            class_names=self.class_names and self.class_names[1:],
        )
