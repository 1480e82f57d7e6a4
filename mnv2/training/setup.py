"""Builds what a run needs from its settings, and checks that they fit its data and devices."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from mnv2 import data, pretrained
from mnv2.analysis import complexity
from mnv2.models import NETWORKS, STRIDES, MobileNetV2, create_model, name_and_fields
from mnv2.ops import DeviceGroup
from mnv2.preprocess import HOST, LABELS, MIX, PICTURES, Pipeline
from mnv2.preprocess.host import LARGEST_SIDE, View
from mnv2.preprocess.policies import largest_shift
from mnv2.preprocess.simple import with_fill
from mnv2.pretrained.preprocessing import NORMALIZATIONS, note_unlike
from mnv2.runtime.errors import UserError
from mnv2.runtime.processes import say
from mnv2.runtime.terminal import first_few, note_once
from mnv2.training.classes import has_classes_of, match_classes
from mnv2.training.config import Settings, note_what_does_nothing, to_steps
from mnv2.training.optimizer import decays_generally
from mnv2.training.state import TrainState, create_state, with_weights
from mnv2.training.step import (
    AXIS,
    Devices,
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
    train_view   what training makes of a picture on the host
    eval_view    what evaluation makes of a picture
    preprocess   the same as text, and how the steps normalise pixels
    weights      the network of the weights file, with its classifier if the classes are the data
                 set's, otherwise without; None if there is no file
    teacher_variables   None without distillation
    """

    dataset: data.Dataset
    model: nn.Module
    image_shape: tuple[int, int, int]
    train_view: View
    eval_view: View
    preprocess: pretrained.Preprocessing
    durations: Durations
    steps: Steps
    weights: pretrained.Pretrained | None
    teacher_variables: Any = None


def set_up(settings: Settings) -> Setup:
    """Builds everything that a run needs on the devices that JAX has.

    Raises UserError if the settings describe no run.
    """
    dataset = open_data(settings)
    weights = None if settings.weights is None else _load_weights(settings.weights, dataset)
    model = _create_model(settings, dataset.num_classes, weights)
    shape = image_shape(settings, dataset.image_shape, weights)
    data.check_batch_size(settings.batch_size, dataset)
    durations = _durations(settings, dataset.num_examples("train"))
    preprocess = preprocessing(settings, shape[2], weights)
    view, eval_view = train_view(settings, shape), preprocess.view_of(shape[:2], shape[2])
    _check_data(settings, dataset)
    check_views(settings, view, eval_view, dataset.image_shape)
    _check_network(model, settings, shape)
    note_what_does_nothing(settings)
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
    return Setup(
        dataset,
        model,
        eval_view.shape,
        view,
        eval_view,
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
        device_pipeline(settings, preprocess.mean, total_steps, examples),
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
        devices=devices,
    )


def device_pipeline(
    settings: Settings, mean: tuple[float, ...], total_steps: int, examples: int
) -> Pipeline:
    """Returns what a batch goes through on the devices.

    What is erased is the `mean` of pixels. `mix` is left out if it never mixes; if it ends before
    the run does, it has the step.
    """
    pipeline = with_fill(settings.data.pipeline, mean)
    calls = []
    for call in pipeline.of(PICTURES, LABELS, MIX):
        if call.name == "mix" and not (call["mixup"] or call["cutmix"]):
            raise UserError(
                "data.train: mix mixes nothing: give mixup or cutmix an alpha, as mix(mixup=0.2)"
            )
        if call.name == "mix" and (until := call["until"]) is not None:
            step = to_steps(
                str(until),
                examples=examples,
                batch_size=settings.batch_size,
                what="data.train: until of mix",
            )
            call = call.replace(until=None if step >= total_steps else step)
        if call.name != "mix" or call["until"] != 0:
            calls.append(call)
    return Pipeline(tuple(calls))


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


def train_view(settings: Settings, shape: tuple[int, int, int]) -> View:
    """Returns what training makes of a picture on the host."""
    return View(settings.data.pipeline, shape[:2], shape[2], rounds=True)


def preprocessing(
    settings: Settings, channels: int, weights: pretrained.Pretrained | None
) -> pretrained.Preprocessing:
    """Returns how pictures are seen; their pixels are normalised as for the weights, if any."""
    mean, std = NORMALIZATIONS[settings.data.normalization]
    if weights is not None:
        mean, std = weights.preprocess.mean, weights.preprocess.std
        if (view := weights.preprocess.view) != settings.data.evaluation:
            note_once(
                f"evaluation sees pictures by data.evaluation, {settings.data.evaluation}; the "
                f"weights were evaluated by {view}"
            )
    if len(mean) > 1 and channels == 1:
        raise UserError(
            f"data.normalization {settings.data.normalization} is for colour pictures: "
            "use half for gray ones"
        )
    return pretrained.Preprocessing(settings.data.evaluation, tuple(mean), tuple(std))


def network_of(settings: Settings) -> tuple[nn.Module, tuple[int, int, int]]:
    """Returns the network of a run, with new weights, and (height, width, channels) of its images.

    Does not start JAX on its devices.
    """
    dataset = _open_data(settings)
    model = _create_model(settings, dataset.num_classes, None)
    return model, image_shape(settings, dataset.image_shape)


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
    settings: Settings,
    stored: tuple[int | None, int | None, int],
    weights: pretrained.Pretrained | None = None,
) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the images that the network takes.

    `stored` is that of the pictures in the data set.
    """
    height, width, channels = stored
    if weights is not None:
        channels = weights.channels
    if settings.data.image_size:
        height = width = settings.data.image_size
    if height is None or width is None:
        raise UserError(
            f"images of {settings.data.name} differ in size: set data.image_size, say to 224"
        )
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
    if model.conventions.dtype == jnp.float16:
        raise UserError(
            "model.dtype float16 loses small gradients without loss scaling, which training does "
            "not have: use bfloat16"
        )
    devices = number_of()
    pictures = settings.batch_size // devices // settings.accumulate
    if pictures * (settings.bn_group or devices) > 1 or settings.optimization.classifier_only:
        return
    smallest = min(
        (math.prod(layer.output[:2]), layer.name)
        for layer in complexity.layers(model, shape)
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
    loaded = load_shared(weights, need_head=False)
    if dataset.num_classes == 1000:
        loaded = loaded.without_background()
    note_unlike(loaded.image_size, loaded.channels, lambda: dataset.first("train"))
    if has_classes_of(loaded, dataset) and "classifier" in loaded.variables["params"]:
        _say_once(f"{weights}: its classifier is kept, because {dataset.name} has the same classes")
        return loaded
    count = dataset.num_classes
    _say_once(f"{weights}: a new classifier for the {count} classes of {dataset.name}")
    return loaded.backbone()


def _match_teacher(weights: str, dataset: data.Dataset, channels: int) -> pretrained.Pretrained:
    """Loads the teacher. Raises UserError if its classes or channels are not those of the data."""
    teacher = match_classes(load_shared(weights, need_head=True), dataset, weights, remedy="")
    if teacher.output != "softmax" or teacher.num_classes != dataset.num_classes:
        raise UserError(f"the teacher {weights} must give a softmax over the classes of its data")
    if teacher.channels != channels:
        raise UserError(
            f"the teacher {weights} takes pictures with {teacher.channels} channels, not {channels}"
        )
    return teacher


@functools.cache  # all arms and seeds of a sweep share it
def load_shared(weights: str, need_head: bool) -> pretrained.Pretrained:
    """Loads a file of weights once."""
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
    if settings.data.repeats > (examples := dataset.num_examples("train")):
        raise UserError(f"data.repeats must be at most the {examples} training examples")


def check_views(
    settings: Settings, view: View, eval_view: View, stored: Sequence[int | None]
) -> None:
    """Raises UserError if pictures of the shape `stored` cannot be seen as the settings say."""
    pipeline = settings.data.pipeline
    if pipeline.find("distort_color") and stored[2] == 1:
        raise UserError(
            "data.train: distort_color is for colour pictures, and those of "
            f"{settings.data.name} are gray: leave it out"
        )
    _check_crops(view, stored)
    _note_lost_pictures(pipeline, view.size[1])
    _check_view(eval_view, "data.evaluation", stored)


def _check_view(view: View, field: str, shape: Sequence[int | None]) -> None:
    """Raises UserError if pictures are too small for what the field crops, or it enlarges too much.

    If pictures differ in size, only if all are, be they square, wide or high.
    """
    if not any(call.name in ("center_crop", "resize_shorter") for call in view.pipeline.calls):
        return
    sizes = [shape[:2]]
    if None in shape:
        sizes = [(LARGEST_SIDE // i, LARGEST_SIDE // j) for i, j in ((1, 1), (2, 1), (1, 2))]
    error = None
    for size in sizes:
        try:
            view(np.zeros((*size, shape[2] or 3), np.uint8), np.random.default_rng(0))
            return
        except UserError as wrong:
            error = error or wrong
    raise UserError(f"{field}: {error}")


def _check_crops(view: View, stored: Sequence[int | None]) -> None:
    """Raises UserError if no crop of the pictures can be as the settings say."""
    height, width, _ = stored
    for call in view.pipeline.of(HOST):
        if height and width and call.name in ("inception_crop", "resized_crop"):
            low, high = (aspect * height / width for aspect in call["aspect"])
            largest = 1.0 if low <= 1 <= high else min(high, 1 / low)  # of the picture's area
            if largest < call["smallest"] or call["largest"] * height * width < 1:
                raise UserError(
                    f"data.train: no crop of a picture of {height} x {width} pixels can be as "
                    f"{call.name} says"
                )
    _check_view(view, "data.train", stored)
    for call in view.pipeline.of(PICTURES):
        if call.name == "pad_crop" and call["pad"] > (side := min(view.size)):
            raise UserError(
                f"data.train: pad of pad_crop must be at most the {side} pixels of a side"
            )
        fill = call["fill"] if call.name == "erase" else None
        if isinstance(fill, tuple) and len(fill) != view.channels:
            raise UserError(
                f"data.train: fill of erase must have a value for each channel, {view.channels}, "
                f"got {fill!r}"
            )


def _note_lost_pictures(pipeline: Pipeline, side: int) -> None:
    """Says in a note if a policy can shift pictures out of themselves, as torchvision's can."""
    for call in pipeline.of(PICTURES):
        if (shift := largest_shift(call, side)) >= side:
            note_once(
                f"data.train: {call.name} shifts pictures of {side} pixels by up to {shift}: some "
                "keep their label with nothing left of them but its fill"
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
    mixes = settings.data.pipeline.find("mix") is not None
    if mixes and part == 1:
        raise UserError(
            "data.train: mix needs 2 pictures or more on each device: raise batch_size above "
            f"{settings.batch_size}"
        )
    if mixes and repeats > 1 and repeats > part // 2:
        raise UserError(
            f"data.repeats must be at most half of the {part} pictures that each device gets of a "
            f"batch with mix in data.train, got {repeats}: a picture would be mixed with itself"
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
