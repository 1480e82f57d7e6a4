"""The fields of a config: default, what it may be, what it does, and with what it acts.

This is the one table of fields. `defaults()` makes of it the config that experiments change,
`from_config` the typed settings of a run with every check, and `make fields` docs/fields.md.
A config is an ml_collections.ConfigDict, so that every field can be set on the command line.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from mnv2.preprocess.host import LARGEST_SIDE, parse_view
from mnv2.preprocess.text import Pipeline, parse
from mnv2.runtime.errors import (
    Check,
    UserError,
    call,
    check_choice,
    choice,
    number,
    pattern,
    text,
    whole,
)
from mnv2.runtime.terminal import note_once

UNITS = ("epochs", "steps", "examples")
MOST_STEPS = 2**31 - 1  # of a run: they are counted in 32 bits
LARGEST_SEED = 2**32 - 1  # JAX takes 32 bits of a seed
SCHEDULES = ("cosine", "exponential", "constant")
FINAL_SPLITS = ("test", "validation")

# Fields of a config that describe a sweep and no single run.
OF_SWEEP = {
    "seeds": "The number of seeds. An arm may have its own.",
    "arms": "Pairs of a name and the fields that the arm changes, or a function that sets them.",
    "baseline": "The arm with which the others are compared.",
    "panels": "Of the figure: triples of a title, the field on the x axis, and names of arms.",
    "tuned": "A field and its values: each arm is first trained with all of them, on validation.",
    "tuning_seeds": "The number of seeds of tuning.",
}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the fields of a config and of the groups in it, by dotted name."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def to_steps(duration: str, *, examples: int, batch_size: int, what: str = "duration") -> int:
    """Converts '2 epochs', '1000 steps' or '100000 examples' to training steps.

    Rounded to the nearest, and at least 1. A duration of 0 is 0 steps. An epoch is examples //
    batch_size steps. Raises UserError, naming the field `what`, for other text and for a part of a
    step.
    """
    try:
        amount_text, unit = duration.split()
        amount = float(amount_text)
    except ValueError:
        amount, unit = -1.0, UNITS[0]
    if not 0 <= amount < math.inf:
        hint = f": did you mean '{duration} steps'?" if duration.isdecimal() else ""
        raise UserError(
            f"{what} must be like '2 epochs', '1000 steps' or '100000 examples', got {duration!r}"
            f"{hint}"
        )
    unit = unit if unit.endswith("s") else unit + "s"
    check_choice(unit, UNITS, f"unit in {what}")
    if unit != "epochs" and not amount.is_integer():
        raise UserError(f"{what} must be a whole number of {unit}, got {duration!r}")
    scale = {"epochs": examples // batch_size, "steps": 1, "examples": 1 / batch_size}[unit]
    if amount * scale > MOST_STEPS:
        raise UserError(f"{what} must be at most {MOST_STEPS:,} steps, got {duration!r}")
    return max(1, round(amount * scale)) if amount else 0


def is_never(duration: str) -> bool:
    """Tells whether a duration is 0."""
    return not to_steps(duration, examples=1, batch_size=1)


def any_duration(field: str, value: Any) -> None:
    """Checks a duration such as '2 epochs'; '0 steps' means never."""
    to_steps(str(value), examples=1 << 20, batch_size=1, what=field)


def positive_duration(field: str, value: Any) -> None:
    """Checks a duration that is longer than 0."""
    if not to_steps(str(value), examples=1 << 20, batch_size=1, what=field):
        raise UserError(f"{field} must be greater than 0, got {value!r}")


def train_pipeline(field: str, value: Any) -> str:
    """Checks the text of what training makes of pictures: see `preprocess.text`."""
    parse(value, field)
    return value


def eval_pipeline(field: str, value: Any) -> str:
    """Checks the text of what evaluation makes of pictures."""
    parse_view(value, field)
    return value


class ActsWith(typing.NamedTuple):
    """The condition under which a field acts: whether settings fulfil it, and in words."""

    holds: Callable[["Settings"], bool]
    words: str


def _field(
    default: Any, check: Check | None, help: str, acts_with: ActsWith | None = None, **more: Any
) -> Any:
    """Describes a field. With `in_defaults=False`, only the configs that need it have it."""
    metadata = {"check": check, "help": help, "acts_with": acts_with, **more}
    return dataclasses.field(default=default, metadata=metadata)


_AUGMENTED = ActsWith(
    lambda s: bool(s.data.pipeline.calls),
    "some operation in data.train: all versions of a picture are equal",
)
_WARMUP = ActsWith(lambda s: not is_never(s.optimization.warmup), "optimization.warmup")
_EXPONENTIAL = ActsWith(
    lambda s: s.optimization.schedule == "exponential", "optimization.schedule exponential"
)
_NOT_FROZEN = ActsWith(lambda s: not s.optimization.classifier_only, "layers that are not frozen")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where examples come from, and how training and evaluation see them."""

    # fmt: off
    name: str = _field("fashion_mnist", text, "Any TFDS classification set, or folder:PATH.")
    dir: str | None = _field(None, text, "The folder of the data sets; default: that of TFDS.")
    on_broken: str = _field("stop", choice(("stop", "skip")),
        "What to do about pictures of a folder that cannot be read.")
    validation: int = _field(5000, whole(0), "Examples held out from the end of train.")
    image_size: int | None = _field(None, whole(1, LARGEST_SIDE),
        "The side of the network's pictures; default: that of the data set.")
    train: str = _field("", train_pipeline,
        "What a training picture goes through, such as \"resized_crop|flip|rand_augment(2, 9)\": "
        "docs/fields.md has all operations. Quote | in a shell.")
    evaluation: str = _field("fit(0.875)", eval_pipeline,
        "What a picture goes through in evaluation, as \"resize_shorter(256)|center_crop(224)\".")
    repeats: int = _field(1, whole(1),
        "How often an epoch has each of its pictures: repeated augmentation.", _AUGMENTED)
    normalization: str = _field("half", choice(("half", "cifar10", "imagenet")),
        "Of pixels: half (-1 to 1), or mean and deviation of imagenet or cifar10.")
    # fmt: on

    @property
    def pipeline(self) -> Pipeline:
        """The operations of `train`."""
        return parse(self.train, "data.train")


@dataclasses.dataclass(frozen=True)
class Optimization:
    """The optimiser, its schedule, and what it decays."""

    # fmt: off
    optimizer: str = _field("sgd(momentum=0.9, nesterov=True)", call,
        "Any optimiser of optax that needs only gradients and parameters, with its arguments, as "
        "adamw(b2=0.95); or rmsprop_tf(decay=0.9, momentum=0.9, eps=1.0), TensorFlow's.")
    schedule: str = _field("cosine", choice(SCHEDULES),
        "cosine: to 0 at the end; exponential: in stairs; constant.")
    learning_rate: float = _field(0.05, number(0), "After the warm-up.")
    backbone_rate: float = _field(1.0, number(0),
        "The learning rate of the backbone, relative to the classifier's; 0: it is frozen.")
    warmup: str = _field("50 steps", any_duration, "Of the learning rate, linear.")
    warmup_from: float = _field(0.0, number(0, 1, high_open=False),
        "The part of the learning rate at the first step.", _WARMUP)
    rate_every: str = _field("1 steps", positive_duration,
        "'1 epochs': the rate changes once per epoch, as in PyTorch's recipes.")
    decay_rate: float = _field(0.98, number(0, low_open=True),
        "The factor per stair.", _EXPONENTIAL)
    decay_every: str = _field("1 epochs", positive_duration, "The time between stairs.",
        _EXPONENTIAL)
    clip: float = _field(0.0, number(0), "The largest norm of all gradients; 0: any.")
    weight_decay: float = _field(4e-5, number(0),
        "Decoupled for optimisers that have a weight decay of their own, such as adamw; for others "
        "an L2 term of the loss.")
    weight_decay_on: str = _field("kernel", pattern,
        "A regular expression for the paths of the parameters that decay.")
    norm_weight_decay: float | None = _field(None, number(0),
        "That of batch norm, whatever weight_decay_on matches, as in torchvision.", _NOT_FROZEN)
    # fmt: on

    @property
    def classifier_only(self) -> bool:
        """Tells whether the backbone is frozen."""
        return self.backbone_rate == 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that describes one run. Durations: '2 epochs', '1000 steps', '100000 examples'."""

    # fmt: off
    model: Mapping[str, Any]  # `name` and the fields of that network
    data: Data = Data()
    optimization: Optimization = Optimization()
    seed: int = _field(0, whole(0, LARGEST_SEED),
        "The first seed. It determines initial values, order of data and augmentation.")
    batch_size: int = _field(128, whole(1), "Of all devices together.")
    eval_batch_size: int = _field(500, whole(1), "Of an evaluation.")
    duration: str = _field("500 steps", positive_duration, "Of a run.")
    bn_group: int | None = _field(None, whole(1),
        "Devices that compute batch norm's statistics together; default: all of them. The papers "
        "trained with 1.")
    label_smoothing: float = _field(0.0, number(0, 1), "The part spread over all classes.")
    accumulate: int = _field(1, whole(1),
        "Parts of a device's batch that are computed one after another, to need less memory. Batch "
        "norm sees one part at a time.")
    teacher: str | None = _field(None, text,
        "Distillation: a file of weights whose network sees the same pictures.")
    temperature: float = _field(1.0, number(0, low_open=True),
        "Of the softmax that is compared with the teacher's.")
    label_weight: float = _field(0.5, number(0, 1, high_open=False),
        "Of the labels' loss; the teacher's has the rest.")
    final_split: str = _field("test", choice(FINAL_SPLITS),
        "Where a finished run is evaluated. With validation it never sees the test split: for "
        "choosing values.")
    on_nan: str = _field("stop", choice(("stop", "skip")),
        "For a loss that is not finite; skipped steps are counted.")
    ema_decay: float = _field(0.0, number(0, 1),
        "Of the moving average of the parameters; 0: no average.")
    log_every: int = _field(50, whole(1), "Steps.")
    eval_every: str = _field("250 steps", any_duration,
        "Of validation, and at the end; 0 steps: never.")
    checkpoint_every: str = _field("250 steps", any_duration, "And at the end.")
    weights: str | None = _field(None, text, "A file whose network is trained.", in_defaults=False)
    start: str = _field("weights", choice(("weights", "scratch")),
        "scratch: the network of the file with new initial values.", in_defaults=False)
    # fmt: on

    @property
    def starts_from_weights(self) -> bool:
        """Tells whether the weights of the file are used, and not only its network."""
        return self.weights is not None and self.start == "weights"

    def flat(self) -> dict[str, Any]:
        """Returns all fields by their dotted names, as on the command line."""
        return flat(dataclasses.asdict(self))


GROUPS: dict[str, type] = {"": Settings, "data.": Data, "optimization.": Optimization}
# MobileNetV2 on 28 x 28 pixels. The strides are of the stem and of each row of table 2:
# 28 -> 14, 14, 7, 4, 4, 4, 2, 2. A run of 500 steps needs the short averages of bn_momentum 0.9.
MODEL = {
    **{"name": "mobilenet_v2", "width": 0.35, "expansion": 6.0, "bottleneck": "linear"},
    **{"shortcut": "bottleneck", "block": "inverted_residual", "strides": (2, 1, 2, 2, 1, 1, 2, 1)},
    **{"dropout": 0.0, "padding": "same", "bn_momentum": 0.9, "bn_epsilon": 1e-3},
    **{"dtype": "float32"},
}


def _described() -> Iterator[tuple[str, dataclasses.Field]]:
    """Lists all fields with a description, by dotted name."""
    for prefix, group in GROUPS.items():
        for field in dataclasses.fields(group):
            if "help" in field.metadata:
                yield prefix + field.name, field


FIELDS: dict[str, dataclasses.Field] = dict(_described())


def defaults() -> ml_collections.ConfigDict:
    """Returns a short run of MobileNetV2 0.35 on Fashion-MNIST, which experiments change."""
    config = ml_collections.ConfigDict({"seeds": 1, "model": dict(MODEL)})
    for name, field in FIELDS.items():
        if field.metadata.get("in_defaults", True):
            group, _, last = name.rpartition(".")
            if group and group not in config:
                config[group] = ml_collections.ConfigDict()
            here = config[group] if group else config
            here[last] = _placeholder(name) if field.default is None else field.default
    return config


def _placeholder(name: str) -> Any:
    """Returns the default of a field that may be None, which keeps the type of its other values."""
    group, _, last = name.rpartition(".")
    hints = typing.get_type_hints(GROUPS[f"{group}." if group else ""])
    (of,) = (kind for kind in typing.get_args(hints[last]) if kind is not types.NoneType)
    return config_dict.placeholder(of)


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Returns the settings of a run from its resolved config.

    Raises UserError for a field that is unknown or has an impossible value.
    """
    if "weights" in config and not config.weights:
        raise UserError("no weights given: set config.weights to a file, as --config.weights FILE")
    for group in ("data", "model", "optimization"):
        if group not in config:
            raise UserError(f"the config lacks {group}: see docs/fields.md")
    settings = Settings(
        **{
            **_values_of(Settings, config),
            "data": Data(**_values_of(Data, config.data, "data.")),
            "model": config.model.to_dict(),
            "optimization": Optimization(
                **_values_of(Optimization, config.optimization, "optimization.")
            ),
        }
    )
    values = settings.flat()
    for name, field in FIELDS.items():
        check = field.metadata["check"]
        if check is not None and not (values[name] is None and field.default is None):
            check(name, values[name])
    return settings


def _values_of(group: type, config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Returns the values that `config` has for the fields of a group.

    Raises UserError for one that is unknown: a typing error would train another network than the
    config says.
    """
    known = [field.name for field in dataclasses.fields(group)]
    for name in config:
        if name not in known and (prefix or name not in OF_SWEEP):
            raise UserError(unknown(prefix + name, [prefix + field for field in known]))
    return {name: config[name] for name in known if name in config}


def unknown(name: str, known: typing.Iterable[str] = tuple(FIELDS)) -> str:
    """Says that a config has an unknown field, and what to write instead."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "see docs/fields.md"
    return f"the config has the unknown field {name}: {hint}"


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a recorded config by dotted name; new fields have their default."""
    return {**{name: field.default for name, field in FIELDS.items()}, **values}


def note_what_does_nothing(settings: Settings) -> None:
    """Says in a note which fields were set but act only together with another one."""
    values = settings.flat()
    idle = [
        f"{name} acts only with {acts_with.words}"
        for name, field in FIELDS.items()
        if (acts_with := field.metadata["acts_with"]) is not None
        and values[name] != field.default
        and not acts_with.holds(settings)
    ]
    if idle:
        note_once(f"without effect: {'; '.join(idle)}")
