"""What a config describes, built: data set, network, starting weights, compiled steps."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from mnv2 import data, pretrained
from mnv2.models import create_model, describe
from mnv2.runtime.errors import UserError, check_choice, check_positive
from mnv2.training.devices import AXIS
from mnv2.training.durations import to_steps
from mnv2.training.state import TrainState
from mnv2.training.steps import Steps, compile_steps, frozen, step_settings


class Parts(NamedTuple):
    """What a config describes, built; nothing is compiled yet."""

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    pixels: data.Pixels
    durations: tuple[int, int, int]  # steps: in all, between evaluations, between checkpoints
    on_devices: Steps


def build(config: ml_collections.ConfigDict) -> Parts:
    """Builds all that a run needs. Raises UserError if the config does not describe a run."""
    dataset, model = open_data(config), build_model(config)
    shape = image_shape(config, dataset)
    check_choice(config.data.augmentation, data.AUGMENTATIONS, "augmentation")
    examples = dataset.num_examples("train")
    total, evaluation, checkpoint = (
        to_steps(config[name], examples=examples, batch_size=config.batch_size, what=name)
        for name in ("duration", "eval_every", "checkpoint_every")
    )
    check_positive(total, "duration")
    on_devices = compile_steps(model, step_settings(config), total, examples)
    pixels = data.Pixels()
    if config.get("weights"):
        preprocess = load_backbone(config.weights).preprocess
        pixels = data.Pixels(shape[2], preprocess.mean, preprocess.std)
    return Parts(dataset, model, shape, pixels, (total, evaluation, checkpoint), on_devices)


def open_data(config: ml_collections.ConfigDict) -> data.Dataset:
    """The data set of a config, prepared if it was not, and checked against the batch size."""
    if config.batch_size < 1 or config.batch_size % jax.device_count():
        raise UserError(
            f"batch_size must be a multiple of the {jax.device_count()} devices, "
            f"got {config.batch_size}"
        )
    settings = config.data
    return data.open_dataset(settings.name, settings.dir, settings.validation, settings.on_broken)


def build_model(config: ml_collections.ConfigDict) -> nn.Module:
    """The network of a config, for the data set's classes, synchronised over devices.

    Where the config names weights, the network is theirs, changed where config.model says so.
    """
    starts_from_weights(config)
    fields = {**config.model, "num_classes": open_data(config).num_classes, "axis_name": AXIS}
    if not config.get("weights"):
        return create_model(fields.pop("name"), **fields)
    name, theirs = describe(load_backbone(config.weights).model)
    return create_model(name, **{**theirs, **fields, "bn_frozen": frozen(config.optimization)})


def starts_from_weights(config: ml_collections.ConfigDict) -> bool:
    """True unless a config names no weights, or only their network."""
    if "weights" not in config:
        return False
    if not config.weights:
        raise UserError("no weights given: set config.weights to a file, as --config.weights FILE")
    check_choice(config.start, ("weights", "scratch"), "start")
    return config.start == "weights"


@functools.cache
def load_backbone(weights: str) -> pretrained.Pretrained:
    """What a file or a hub's repository holds, without its classifier."""
    return pretrained.load(weights).backbone()


def adopt(state: TrainState, backbone: pretrained.Pretrained) -> TrainState:
    """A fresh state with the parameters and statistics of `backbone`; the classifier stays new."""

    def taken(fresh: Any, given: Any) -> Any:
        # Copies, since a step overwrites the state's arrays.
        return {**fresh, **jax.tree.map(jnp.copy, given)}

    theirs = backbone.variables
    return state.replace(  # type: ignore[attr-defined]
        params=taken(state.params, theirs["params"]),
        batch_stats=taken(state.batch_stats, theirs["batch_stats"]),
        ema=None if state.ema is None else taken(state.ema, theirs["params"]),
    )


def image_shape(config: ml_collections.ConfigDict, dataset: data.Dataset) -> tuple[int, int, int]:
    """(height, width, channels) of what the network sees."""
    height, width, channels = dataset.image_shape
    if config.get("weights"):
        channels = load_backbone(config.weights).channels
    if config.data.image_size:
        height = width = config.data.image_size
    if height is None or width is None:
        raise UserError(f"images of {dataset.name} differ in size: set data.image_size, say to 224")
    return height, width, channels
