"""Builds what a run needs from its settings: data set, network, durations, steps."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from mnv2 import data, pretrained
from mnv2.models import create_model, name_and_fields
from mnv2.runtime.errors import UserError, check_choice, check_positive
from mnv2.training.devices import AXIS
from mnv2.training.durations import to_steps
from mnv2.training.settings import Settings
from mnv2.training.steps import Steps, create_steps


class Durations(NamedTuple):
    """How long a run is and how often it evaluates and saves, in steps; 0 means never."""

    total: int
    eval_every: int
    checkpoint_every: int


class Setup(NamedTuple):
    """Everything that a run needs. Nothing is compiled yet.

    image_shape  (height, width, channels) of the images that the network takes
    pixels       how their values are normalised
    backbone     the network of the weights file without its classifier; None if there is no file
    """

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    pixels: data.Pixels
    durations: Durations
    steps: Steps
    backbone: pretrained.Pretrained | None

    def eval_view(self) -> Callable[..., Any]:
        """Returns the function that turns pictures into the network's input in evaluation."""
        return functools.partial(data.eval_image, size=self.image_shape[:2], pixels=self.pixels)

    def as_pictures(self, images: np.ndarray, count: int = 8) -> np.ndarray:
        """Undoes the normalisation of the first `count` images: count h w c, in [0, 1]."""
        mean, std = np.asarray(self.pixels.mean), np.asarray(self.pixels.std)
        return np.clip(images[:count] * std + mean, 0, 1)


def set_up(settings: Settings) -> Setup:
    """Builds everything that a run needs. Raises UserError if the settings describe no run."""
    dataset = open_data(settings)
    backbone = None if settings.weights is None else _load_backbone(settings.weights)
    model = _create_model(settings, dataset.num_classes, backbone)
    shape = image_shape(settings, dataset, backbone)
    check_choice(settings.data.augmentation, data.AUGMENTATIONS, "augmentation")
    examples = dataset.num_examples("train")
    durations = Durations(
        *(
            to_steps(duration, examples=examples, batch_size=settings.batch_size, what=name)
            for name, duration in (
                ("duration", settings.duration),
                ("eval_every", settings.eval_every),
                ("checkpoint_every", settings.checkpoint_every),
            )
        )
    )
    check_positive(durations.total, "duration")
    steps = create_steps(model, settings, total_steps=durations.total, examples=examples)
    pixels = data.Pixels()
    if backbone is not None:
        pixels = data.Pixels(shape[2], backbone.preprocess.mean, backbone.preprocess.std)
    return Setup(dataset, model, shape, pixels, durations, steps, backbone)


def open_data(settings: Settings) -> data.Dataset:
    """Opens the data set, and prepares it first if necessary.

    Raises UserError if the devices cannot share a batch evenly.
    """
    if settings.batch_size % jax.device_count():
        raise UserError(
            f"batch_size must be a multiple of the {jax.device_count()} devices, "
            f"got {settings.batch_size}"
        )
    chosen = settings.data
    return data.open_dataset(chosen.name, chosen.dir, chosen.validation, chosen.on_broken)


def image_shape(
    settings: Settings, dataset: data.Dataset, backbone: pretrained.Pretrained | None = None
) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the images that the network takes."""
    height, width, channels = dataset.image_shape
    if backbone is not None:
        channels = backbone.channels
    if settings.data.image_size:
        height = width = settings.data.image_size
    if height is None or width is None:
        raise UserError(f"images of {dataset.name} differ in size: set data.image_size, say to 224")
    return height, width, channels


def _create_model(
    settings: Settings, num_classes: int, backbone: pretrained.Pretrained | None
) -> nn.Module:
    """Creates the network for the data set's classes, with batch norm synchronised over devices.

    If there is a weights file, it is the file's network with the changes that the config makes.
    """
    fields = {**settings.model, "num_classes": num_classes, "axis_name": AXIS}
    if backbone is None:
        return create_model(fields.pop("name"), **fields)
    name, theirs = name_and_fields(backbone.model)
    bn_frozen = settings.optimization.classifier_only
    return create_model(name, **{**theirs, **fields, "bn_frozen": bn_frozen})


@functools.cache  # all arms and seeds of a sweep share it
def _load_backbone(weights: str) -> pretrained.Pretrained:
    """Loads a file, or a repository of the Hugging Face hub, without its classifier."""
    return pretrained.load(weights).backbone()
