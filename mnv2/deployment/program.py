"""What is exported: a function from images to logits or probabilities, with its description."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mnv2.models import with_conventions
from mnv2.models.inference import fold_batch_norm
from mnv2.ops.platforms import PLAIN, traced_for
from mnv2.pretrained import Preprocessing, Pretrained
from mnv2.pretrained.loaded import DenseHead

IMAGE = "image"  # the name of the input
LOGITS, PROBABILITIES = "logits", "probabilities"  # names of the output
METADATA = "mnv2"  # the name under which a file holds its description
STABLE = "tpu"  # the platform for which JAX writes StableHLO only, without calls of a library


@dataclasses.dataclass(frozen=True)
class Description:
    """What a file says about how to use it.

    pixels       the input is pixels from 0 to 255, uint8; otherwise it is normalised, float32
    activation   the function from logits to probabilities: softmax or sigmoid
    preprocess   how pictures are brought to the network's size, and pixels normalised
    image_size   (height, width)
    channels     of the images: 3, or 1 for gray
    classes      the number of outputs
    class_names  one per output; None if the weights did not tell them
    """

    pixels: bool
    activation: str
    preprocess: Preprocessing
    image_size: tuple[int, int]
    channels: int
    classes: int
    class_names: tuple[str, ...] | None

    @property
    def output_name(self) -> str:
        """The name of the output: pixels give probabilities, normalised images give logits."""
        return PROBABILITIES if self.pixels else LOGITS

    def input_of(self, images: np.ndarray) -> np.ndarray:
        """Returns what a file takes for images (n h w c) in [0, 255]; pixels are rounded."""
        if self.pixels:
            return np.clip(np.rint(images), 0, 255).astype(np.uint8)
        return np.asarray(self.preprocess(images))

    def to_json(self) -> str:
        """Returns the description as the text that a file holds."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> "Description":
        """Returns the description in a file that this package wrote."""
        fields: Any = {
            x: tuple(y) if isinstance(y, list) else y for x, y in json.loads(text).items()
        }
        return Description(**{**fields, "preprocess": Preprocessing.of(fields["preprocess"])})


@dataclasses.dataclass(frozen=True)
class Program:
    """A network that is ready to be exported.

    logits   the function from `image` to logits, with batch norm folded, in plain operations
    image    shape and type of the input, (batch, height, width, channels)
    """

    logits: Callable[[Any], Array]
    image: jax.ShapeDtypeStruct
    description: Description

    def output(self, images: Any) -> Array:
        """Computes what the file gives: probabilities from pixels, otherwise logits."""
        logits = self.logits(images)
        if not self.description.pixels:
            return logits
        softmax = self.description.activation == "softmax"
        return jax.nn.softmax(logits) if softmax else jax.nn.sigmoid(logits)


def program_of(loaded: Pretrained, *, pixels: bool = True, batch: int = 1) -> Program:
    """Returns the program of a classifier, in float32, for batches of `batch` images or pixels."""
    # In float32, however it was trained.
    model: Any = loaded.model
    if isinstance(model, DenseHead):
        model = model.clone(backbone=with_conventions(model.backbone, dtype=jnp.float32))
    else:
        model = with_conventions(model, dtype=jnp.float32)
    # The kernels are constants of the program, so they are folded here, not each time it runs.
    folded = {"params": fold_batch_norm(model, loaded.variables)["params"]}
    folded = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), folded)

    def logits(images: Any) -> Array:
        with traced_for(PLAIN):
            images = images.astype(jnp.float32)
            if pixels:
                images = loaded.preprocess(images)
            return loaded.of_each_class(model.apply(folded, images, train=False))

    exclusive = loaded.output == "softmax" or loaded.num_classes == 1
    shape = (batch, *loaded.image_size, loaded.channels)
    return Program(
        logits,
        jax.ShapeDtypeStruct(shape, jnp.uint8 if pixels else jnp.float32),
        Description(
            pixels=pixels,
            activation="softmax" if exclusive else "sigmoid",
            preprocess=loaded.preprocess,
            image_size=loaded.image_size,
            channels=loaded.channels,
            classes=len(loaded.display_names),
            class_names=None if loaded.class_names is None else loaded.display_names,
        ),
    )
