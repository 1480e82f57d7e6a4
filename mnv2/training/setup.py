"""Builds what a run needs from its settings: data set, network, durations, steps."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from mnv2 import data, pretrained
from mnv2.analysis import complexity
from mnv2.models import NETWORKS, STRIDES, MobileNetV2, create_model, name_and_fields
from mnv2.ops import DeviceGroup
from mnv2.pretrained.preprocessing import CROPPING, NORMALIZATIONS
from mnv2.runtime.errors import UserError
from mnv2.runtime.processes import say
from mnv2.runtime.terminal import note_once
from mnv2.training.classes import has_classes_of, match_classes
from mnv2.training.combinations import (
    check_data,
    check_devices,
    check_durations,
    note_what_does_nothing,
)
from mnv2.training.devices import AXIS, Devices, number_of
from mnv2.training.durations import to_steps
from mnv2.training.evaluation import view_of
from mnv2.training.objective import Teacher
from mnv2.training.settings import Settings
from mnv2.training.steps import Steps, create_steps


class Durations(NamedTuple):
    """How long a run is and how often it evaluates and saves, in steps; 0 means never."""

    total: int
    eval_every: int
    checkpoint_every: int


class Setup(NamedTuple):
    """Everything that a run needs. Nothing is compiled yet.

    image_shape  (height, width, channels) of the images that the network takes in evaluation
    view         what training makes of a picture; its size may be another one
    preprocess   how evaluation crops and resizes pictures, and how the steps normalise their pixels
    weights      the network of the weights file, with its classifier if the classes are the data
                 set's, otherwise without; None if there is no file
    taught       the variables of the teacher; None without distillation
    """

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    view: data.View
    preprocess: pretrained.Preprocessing
    durations: Durations
    steps: Steps
    weights: pretrained.Pretrained | None
    taught: Any = None

    def views(self, settings: Settings) -> list[data.View]:
        """Returns what training makes of a picture in each part of the run."""
        sizes = settings.data.progressive
        return [self.view._replace(size=(size, size)) for size in sizes] or [self.view]

    def eval_view(self) -> Callable[..., Any]:
        """Returns the function that brings pictures to the network's shape in evaluation."""
        height, width, channels = self.image_shape
        return view_of(self.preprocess, (height, width), channels)


def set_up(settings: Settings, devices: Devices = None) -> Setup:
    """Builds everything that a run on `devices` needs.

    Raises UserError if the settings describe no run.
    """
    dataset = open_data(settings, devices)
    weights = None if settings.weights is None else _load_weights(settings.weights, dataset)
    model = _create_model(settings, dataset.num_classes, weights)
    shape = image_shape(settings, dataset, weights)
    examples = dataset.num_examples("train")
    data.check_batch_size(settings.batch_size, dataset)

    def in_steps(name: str, duration: str) -> int:
        return to_steps(duration, examples=examples, batch_size=settings.batch_size, what=name)

    durations = Durations(
        in_steps("duration", settings.duration),
        in_steps("eval_every", settings.eval_every),
        in_steps("checkpoint_every", settings.checkpoint_every),
    )
    check_durations(
        settings,
        total=durations.total,
        warmup=in_steps("optimization.warmup", settings.optimization.warmup),
        rate_every=in_steps("optimization.rate_every", settings.optimization.rate_every),
    )
    check_data(settings, dataset)
    _check_network(model, settings, shape, number_of(devices))
    note_what_does_nothing(settings)
    seen = _preprocessing(settings, shape[2], weights)
    taught, teacher = None, None
    if settings.teacher is not None:
        taught = _match_teacher(settings.teacher, dataset, shape[2])
        teacher = Teacher(
            taught.model, taught.preprocess, settings.temperature, settings.label_weight
        )
    steps = create_steps(
        model,
        settings,
        seen,
        total_steps=durations.total,
        examples=examples,
        teacher=teacher,
        devices=devices,
    )
    return Setup(
        dataset,
        model,
        shape if settings.data.eval_size is None else (*(settings.data.eval_size,) * 2, shape[2]),
        settings.data.view(shape[:2], shape[2], seen.mean),
        seen,
        durations,
        steps,
        weights,
        None if taught is None else taught.variables,
    )


def _preprocessing(
    settings: Settings, channels: int, weights: pretrained.Pretrained | None
) -> pretrained.Preprocessing:
    """Returns how pictures are seen; their pixels are normalised as for the weights, if any."""
    mean, std = NORMALIZATIONS[settings.data.normalization]
    if weights is not None:
        mean, std = weights.preprocess.mean, weights.preprocess.std
    if len(mean) > 1 and channels == 1:
        raise UserError(
            f"data.normalization {settings.data.normalization} is for colour pictures: "
            "use half for gray ones"
        )
    method = settings.data.eval_method
    crop = settings.data.eval_crop if method in CROPPING else 1.0
    return pretrained.Preprocessing(method, crop, tuple(mean), tuple(std))


def network_of(settings: Settings) -> tuple[nn.Module, tuple[int, int, int]]:
    """Returns the network of a run, with new weights, and (height, width, channels) of its images.

    Does not start JAX on its devices.
    """
    dataset = _open_data(settings)
    model = _create_model(settings, dataset.num_classes, None)
    return model, image_shape(settings, dataset)


def open_data(settings: Settings, devices: Devices = None) -> data.Dataset:
    """Opens the data set, and prepares it first if necessary.

    Raises UserError if the devices cannot share a batch or form groups evenly.
    """
    check_devices(settings, number_of(devices))
    return _open_data(settings)


def _open_data(settings: Settings) -> data.Dataset:
    chosen = settings.data
    return data.open_dataset(chosen.name, chosen.dir, chosen.validation, chosen.on_broken)


def image_shape(
    settings: Settings, dataset: data.Dataset, weights: pretrained.Pretrained | None = None
) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the images that the network takes."""
    height, width, channels = dataset.image_shape
    if weights is not None:
        channels = weights.channels
    if settings.data.image_size:
        height = width = settings.data.image_size
    if height is None or width is None:
        raise UserError(f"images of {dataset.name} differ in size: set data.image_size, say to 224")
    return height, width, channels


def _create_model(
    settings: Settings, num_classes: int, weights: pretrained.Pretrained | None
) -> nn.Module:
    """Creates the network for the data set's classes, with batch norm over a group of devices.

    If there is a weights file, it is the file's network with the changes that the config makes.
    """
    fields = {**settings.model, "num_classes": num_classes, "axis_name": AXIS}
    if settings.bn_group is not None:
        fields["axis_name"] = DeviceGroup(AXIS, settings.bn_group)
    if weights is None:
        name = fields.pop("name")
        return create_model(name, **fields_of(name, fields))
    name, theirs = name_and_fields(weights.model)
    bn_frozen = settings.optimization.classifier_only
    return create_model(name, **{**theirs, **fields, "bn_frozen": bn_frozen})


def _check_network(
    model: Any, settings: Settings, shape: tuple[int, int, int], devices: int
) -> None:
    """Raises UserError for a type that training cannot use, and if batch norm gets one value."""
    if model.dtype == jnp.float16:
        raise UserError(
            "model.dtype float16 loses small gradients without loss scaling, which training does "
            "not have: use bfloat16"
        )
    pictures = settings.batch_size // devices // settings.accumulate
    if pictures * (settings.bn_group or devices) > 1 or settings.optimization.classifier_only:
        return
    sides = min(settings.data.progressive, default=None)
    size = (sides, sides) if sides else shape[:2]
    smallest = min(
        (math.prod(layer.output[:2]), layer.name)
        for layer in complexity.layers(model, (*size, shape[2]))
        if len(layer.output) == 3
    )
    if smallest[0] == 1:
        raise UserError(
            f"batch norm of {smallest[1]} would get one value per channel, whose deviation is 0: "
            "with one picture on each device its map of 1 x 1 is all that there is; raise "
            "batch_size or data.image_size, or lower accumulate"
        )


def fields_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields that a network has, of a config that was written for MobileNetV2.

    A field of MobileNetV2 that has its default value says nothing about another network, and is
    dropped. Strides of another length are replaced by the network's own for small images, with a
    note. Any other field that the network does not have is an error of `create_model`.
    """
    if name == "mobilenet_v2" or name not in NETWORKS:
        return fields
    known = {field.name for field in dataclasses.fields(NETWORKS[name])}
    defaults = {field.name: field.default for field in dataclasses.fields(MobileNetV2)}
    kept = {
        field: value
        for field, value in fields.items()
        if field in known or value != defaults.get(field)
    }
    strides = kept.get("strides")
    if isinstance(strides, tuple) and len(strides) == len(STRIDES["mobilenet_v2"]["small"]):
        kept["strides"] = "small"
        note_once(f"{name} uses its strides for small images; model.strides changes that")
    return kept


def _load_weights(weights: str, dataset: data.Dataset) -> pretrained.Pretrained:
    """Loads a file, or a repository of the Hugging Face hub.

    Its classifier is kept if its classes are those of the data set, and removed otherwise.
    """
    loaded = _load(weights, need_head=False)
    if dataset.num_classes == 1000:
        loaded = loaded.without_background()
    if has_classes_of(loaded, dataset) and "classifier" in loaded.variables["params"]:
        _say_once(f"{weights}: its classifier is kept, because {dataset.name} has the same classes")
        return loaded
    count = dataset.num_classes
    _say_once(f"{weights}: a new classifier for the {count} classes of {dataset.name}")
    return loaded.backbone()


def _match_teacher(weights: str, dataset: data.Dataset, channels: int) -> pretrained.Pretrained:
    """Loads the teacher. Raises UserError if its classes or channels are not those of the data."""
    teacher = match_classes(_load(weights, need_head=True), dataset, weights, remedy="")
    if teacher.output != "softmax" or teacher.num_classes != dataset.num_classes:
        raise UserError(f"the teacher {weights} must give a softmax over the classes of its data")
    if teacher.channels != channels:
        raise UserError(
            f"the teacher {weights} takes pictures with {teacher.channels} channels, not {channels}"
        )
    return teacher


@functools.cache  # all arms and seeds of a sweep share it
def _load(weights: str, need_head: bool) -> pretrained.Pretrained:
    return pretrained.load(weights, need_head=need_head)


@functools.cache  # all arms and seeds of a sweep say the same
def _say_once(line: str) -> None:
    say(line)
