"""Builds what a run needs from its settings, and checks that they fit its data and devices."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mnv2 import data, pretrained
from mnv2.analysis import complexity
from mnv2.data.augment import Policy
from mnv2.data.augment.policies import strengths
from mnv2.data.preprocess import COVERED
from mnv2.models import NETWORKS, STRIDES, MobileNetV2, create_model, name_and_fields
from mnv2.ops import DeviceGroup
from mnv2.pretrained.preprocessing import CROPPING, NORMALIZATIONS
from mnv2.runtime.errors import UserError
from mnv2.runtime.processes import say
from mnv2.runtime.terminal import first_few, note_once
from mnv2.training.classes import has_classes_of, match_classes
from mnv2.training.config import CROPS, Settings, note_what_does_nothing, to_steps
from mnv2.training.evaluation import view_of
from mnv2.training.optimizer import decays_generally
from mnv2.training.state import TrainState, create_state, with_weights
from mnv2.training.step import (
    AXIS,
    Devices,
    Mixing,
    Objective,
    Steps,
    Teacher,
    create_steps,
    number_of,
    replicate,
)


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
    teacher_variables   None without distillation
    """

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    view: data.View
    preprocess: pretrained.Preprocessing
    durations: Durations
    steps: Steps
    weights: pretrained.Pretrained | None
    teacher_variables: Any = None

    def views(self, settings: Settings) -> list[data.View]:
        """Returns what training makes of a picture in each part of the run."""
        sizes = settings.data.progressive
        return [self.view._replace(size=(size, size)) for size in sizes] or [self.view]

    def eval_view(self) -> Callable[..., Any]:
        """Returns the function that brings pictures to the network's shape in evaluation."""
        height, width, channels = self.image_shape
        return view_of(self.preprocess, (height, width), channels)


def set_up(settings: Settings) -> Setup:
    """Builds everything that a run needs on the devices that JAX has.

    Raises UserError if the settings describe no run.
    """
    dataset = open_data(settings)
    weights = None if settings.weights is None else _load_weights(settings.weights, dataset)
    model = _create_model(settings, dataset.num_classes, weights)
    shape = image_shape(settings, dataset, weights)
    data.check_batch_size(settings.batch_size, dataset)
    durations = _durations(settings, dataset.num_examples("train"))
    _check_data(settings, dataset)
    _check_network(model, settings, shape)
    note_what_does_nothing(settings)
    preprocess = _preprocessing(settings, shape[2], weights)
    loaded, teacher = None, None
    if settings.teacher is not None:
        loaded = _match_teacher(settings.teacher, dataset, shape[2])
        teacher = Teacher(
            loaded.model, loaded.preprocess, settings.temperature, settings.label_weight
        )
    steps = steps_of(
        settings,
        model,
        preprocess,
        total_steps=durations.total,
        examples=dataset.num_examples("train"),
        teacher=teacher,
    )
    eval_size = settings.data.eval_size
    return Setup(
        dataset,
        model,
        shape if eval_size is None else (eval_size, eval_size, shape[2]),
        train_view(settings, shape, preprocess.mean),
        preprocess,
        durations,
        steps,
        weights,
        None if loaded is None else loaded.variables,
    )


def steps_of(
    settings: Settings,
    model: nn.Module,
    preprocess: pretrained.Preprocessing,
    *,
    total_steps: int,
    examples: int,
    teacher: Teacher | None = None,
    devices: Devices = None,
) -> Steps:
    """Creates the steps of a run over `devices` (default: all), with a number of training examples.

    Raises UserError for an optimiser that cannot be used.
    """
    objective = Objective(
        settings.label_smoothing,
        mixing_of(settings, total_steps, examples),
        settings.accumulate,
        settings.optimization.classifier_only,
        teacher,
    )
    return create_steps(
        model,
        preprocess,
        settings.optimization,
        total_steps=total_steps,
        examples=examples,
        batch_size=settings.batch_size,
        objective=objective,
        ema_decay=settings.ema_decay,
        skip_nan=settings.on_nan == "skip",
        pad=settings.data.pad,
        devices=devices,
    )


def mixing_of(settings: Settings, total_steps: int, examples: int) -> Mixing:
    """Returns how the pictures of a run are mixed, and until which of its steps."""
    until = total_steps
    if settings.mix_until is not None:
        until = to_steps(settings.mix_until, examples=examples, batch_size=settings.batch_size)
    return Mixing(settings.mixup, settings.cutmix, min(until, total_steps))


def initial_state(setup: Setup, settings: Settings) -> TrainState:
    """Creates the state before the first step, on all devices.

    Raises UserError if weights are to decay, and none of them has a name that matches.
    """
    state = create_state(
        setup.model,
        setup.steps.optimizer,
        setup.image_shape,
        seed=settings.seed,
        ema=settings.ema_decay > 0,
    )
    names = list(flatten_dict(state.params, sep="/"))
    config = settings.optimization
    if config.weight_decay and not any(decays_generally(name, config) for name in names):
        raise UserError(
            f"optimization.weight_decay_on {config.weight_decay_on!r} matches no parameter that "
            f"has this weight decay: they are {first_few(names)}; set optimization.weight_decay 0 "
            "to decay none"
        )
    if setup.weights is not None and settings.starts_from_weights:
        state = with_weights(state, setup.weights)
    return replicate(state)  # as the steps return it: otherwise the second one would compile again


def train_view(
    settings: Settings, shape: tuple[int, int, int], mean: tuple[float, ...]
) -> data.View:
    """Returns what training makes of a picture; what is erased is the `mean` of pixels."""
    of = settings.data
    policy = Policy(
        of.policy,
        of.policy_operations,
        of.policy_strength,
        of.policy_interpolation,
        of.policy_fill,
    )
    return data.View(
        shape[:2],
        of.augmentation,
        of.pad,
        shape[2],
        area=of.crop_area,
        aspect=of.crop_aspect,
        interpolation=of.interpolation,
        distortion=of.distortion,
        policy=policy,
        erasing=of.erasing,
        erased=tuple(round(255 * value) for value in mean),
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


def open_data(settings: Settings) -> data.Dataset:
    """Opens the data set, and prepares it first if necessary.

    Raises UserError if the devices cannot share a batch or form groups evenly.
    """
    check_devices(settings, number_of())
    return _open_data(settings)


def _open_data(settings: Settings) -> data.Dataset:
    of = settings.data
    return data.open_dataset(of.name, of.dir, of.validation, of.on_broken)


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
        fields = fields_of(name, fields)
    else:
        name, of_file = name_and_fields(weights.model)
        bn_frozen = settings.optimization.classifier_only
        fields = {**of_file, **fields, "bn_frozen": bn_frozen}
    try:
        return create_model(name, **fields)
    except UserError as error:
        raise UserError(f"model: {error}") from error


def _check_network(model: Any, settings: Settings, shape: tuple[int, int, int]) -> None:
    """Raises UserError for a type that training cannot use, and if batch norm gets one value."""
    if model.dtype == jnp.float16:
        raise UserError(
            "model.dtype float16 loses small gradients without loss scaling, which training does "
            "not have: use bfloat16"
        )
    devices = number_of()
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


def _durations(settings: Settings, examples: int) -> Durations:
    """Returns the durations of a run in steps. Raises UserError if they do not fit each other."""

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
    return durations


def _check_data(settings: Settings, dataset: data.Dataset) -> None:
    """Raises UserError for settings that do not fit the data set or each other."""
    if settings.data.distortion != "none" and dataset.image_shape[2] == 1:
        raise UserError(
            f"data.distortion {settings.data.distortion} is for colour pictures, and those of "
            f"{dataset.name} are gray: use none"
        )
    if settings.teacher is None and (settings.temperature, settings.label_weight) != (1.0, 0.5):
        raise UserError(
            "temperature and label_weight are for distillation: set --config.teacher FILE"
        )
    if settings.weights is not None and settings.data.normalization != "half":
        raise UserError("data.normalization must be half: the weights say how pixels are scaled")
    held_out = dataset.parts.get("validation")
    if settings.final_split == "validation" and held_out in (None, dataset.parts.get("test")):
        raise UserError(
            "final_split validation needs examples that are not those of the test: set "
            f"data.validation, say to {max(1, dataset.num_examples('train') // 10)}"
        )
    if settings.recalibrate and settings.optimization.classifier_only:
        raise UserError("recalibrate must be 0 with a frozen backbone, whose batch norm is frozen")
    _check_crops(settings, dataset)
    if settings.data.repeats > (examples := dataset.num_examples("train")):
        raise UserError(f"data.repeats must be at most the {examples} training examples")
    _note_lost_pictures(settings, dataset)


def _check_crops(settings: Settings, dataset: data.Dataset) -> None:
    """Raises UserError if no crop of the pictures can be as the settings say."""
    of, (height, width, _) = settings.data, dataset.image_shape
    if of.augmentation == "inception" and of.crop_area[1] <= COVERED:
        raise UserError(
            f"data.crop_area must end above {COVERED} with data.augmentation inception, got "
            f"{of.crop_area}: resized_crop takes smaller crops"
        )
    if height is None or width is None:
        return  # pictures of many sizes
    if of.augmentation in CROPS:
        low, high = (aspect * height / width for aspect in of.crop_aspect)
        largest = 1.0 if low <= 1 <= high else min(high, 1 / low)  # of the picture's area
        if largest < of.crop_area[0] or of.crop_area[1] * height * width < 1:
            raise UserError(
                f"no crop of a picture of {height} x {width} pixels has data.crop_area "
                f"{of.crop_area} and data.crop_aspect {of.crop_aspect}"
            )
    size = min(of.image_size or height, of.image_size or width)
    if of.augmentation == "crop_flip" and of.pad > size:
        raise UserError(f"data.pad must be at most the size of the pictures, {size}")


def _note_lost_pictures(settings: Settings, dataset: data.Dataset) -> None:
    """Says in a note if a policy can shift pictures out of themselves, as torchvision's can."""
    side = settings.data.image_size or dataset.image_shape[1]
    policy = settings.data.policy
    if policy not in ("none", "auto_imagenet") and side:
        shift = int(strengths("translate_x", policy).max())
        if shift >= side:
            note_once(
                f"data.policy {policy} shifts pictures of {side} pixels by up to {shift}: some "
                "keep their label with nothing left of them but data.policy_fill"
            )


def check_devices(settings: Settings, count: int) -> None:
    """Raises UserError if `count` devices cannot share a batch as the settings say.

    Mixing, accumulation and batch norm see a device's part of a batch, and not the batch.
    """
    if settings.batch_size % count:
        raise UserError(
            f"batch_size must be a multiple of the {count} devices, got {settings.batch_size}"
        )
    if count % (settings.bn_group or 1):
        raise UserError(
            f"bn_group must divide the number of devices, {count}, got {settings.bn_group}"
        )
    part, repeats = settings.batch_size // count, settings.data.repeats
    if settings.has_mixing and part == 1:
        raise UserError(
            "mixup and cutmix need 2 pictures or more on each device: raise batch_size above "
            f"{settings.batch_size}"
        )
    if settings.has_mixing and repeats > 1 and repeats > part // 2:
        raise UserError(
            f"data.repeats must be at most half of the {part} pictures that each device gets of a "
            f"batch with mixup or cutmix, got {repeats}: a picture would be mixed with itself"
        )
    if part % settings.accumulate:
        raise UserError(
            f"accumulate must divide the {part} images that each device gets of a batch, got "
            f"{settings.accumulate}"
        )


def check_durations(settings: Settings, *, total: int, warmup: int, rate_every: int) -> None:
    """Raises UserError if the parts of a run, in steps, are longer than the run.

    Says in a note if the learning rate will hardly change.
    """
    schedule = settings.optimization
    if warmup > total:
        raise UserError(
            f"optimization.warmup is {warmup} steps and the run only {total}: shorten "
            "the warm-up, as --config.optimization.warmup '0 steps'"
        )
    if warmup and rate_every > 1 and schedule.warmup_from == 0:
        raise UserError(
            f"optimization.rate_every {schedule.rate_every!r} keeps the rate of the "
            "warm-up at 0 for its first interval: set optimization.warmup_from, say to 0.01"
        )
    if len(settings.data.progressive) > total:
        raise UserError(
            f"data.progressive has {len(settings.data.progressive)} sizes and the run only "
            f"{total} steps"
        )
    if rate_every >= total > 1 and schedule.schedule != "constant":
        note_once(
            f"the learning rate never changes in this run of {total} steps: "
            f"optimization.rate_every is {schedule.rate_every!r}"
        )
    elif 1 < warmup < rate_every:
        note_once(
            f"the warm-up lasts {rate_every} steps and not {warmup}: optimization.rate_every is "
            f"{schedule.rate_every!r}"
        )
