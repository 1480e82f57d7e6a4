"""The settings of one run: a typed, read-only view of its resolved config.

Configs are ml_collections, so that every field can be set on the command line. Here they get types,
and below here nothing sees a config. `configs/defaults.py` explains each field.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from mnv2.data import View
from mnv2.data.augment import Policy
from mnv2.runtime.errors import UserError
from mnv2.training.checks import check_fields

# Fields of a config that describe a sweep and no single run.
BETWEEN_ARMS = ("arms", "panels", "baseline", "tuned", "tuning_seeds")


@dataclasses.dataclass(frozen=True)
class Data:
    """Where examples come from, and how training sees them."""

    name: str
    dir: str | None
    on_broken: str
    validation: int
    image_size: int | None
    augmentation: str
    pad: int
    crop_area: tuple[float, float] = (0.05, 1.0)
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"
    distortion: str = "none"
    policy: str = "none"
    policy_operations: int = 2
    policy_strength: int = 9
    policy_interpolation: str = "nearest"
    policy_fill: int = 0
    erasing: float = 0.0
    repeats: int = 1
    progressive: tuple[int, ...] = ()
    normalization: str = "half"
    eval_method: str = "mnv2"
    eval_crop: float = 0.875
    eval_size: int | None = None  # None: image_size

    def view(self, size: tuple[int, int], channels: int, mean: tuple[float, ...]) -> View:
        """Returns what training makes of a picture.

        The network takes that size and number of channels; what is erased is the `mean` of pixels.
        """
        return View(
            size,
            self.augmentation,
            self.pad,
            channels,
            area=self.crop_area,
            aspect=self.crop_aspect,
            interpolation=self.interpolation,
            distortion=self.distortion,
            policy=Policy(
                self.policy,
                self.policy_operations,
                self.policy_strength,
                self.policy_interpolation,
                self.policy_fill,
            ),
            erasing=self.erasing,
            erased=tuple(round(255 * value) for value in mean),
        )


@dataclasses.dataclass(frozen=True)
class Optimization:
    """The optimiser, its schedule, and what it decays."""

    optimizer: str
    schedule: str
    learning_rate: float
    warmup: str
    momentum: float
    weight_decay: float
    weight_decay_on: str
    decay_rate: float
    decay_every: str
    rmsprop_decay: float
    epsilon: float
    backbone_rate: float = 1.0  # relative to the classifier's learning rate
    warmup_from: float = 0.0  # of the learning rate
    rate_every: str = "1 steps"
    clip: float = 0.0
    nesterov: bool = True
    norm_weight_decay: float | None = None  # None: as weight_decay_on says
    bias_weight_decay: float | None = None

    @property
    def classifier_only(self) -> bool:
        """Tells whether the backbone is frozen."""
        return self.backbone_rate == 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that describes one run."""

    seed: int
    data: Data
    model: Mapping[str, Any]  # `name` and the fields of that network
    optimization: Optimization
    batch_size: int
    eval_batch_size: int
    duration: str
    label_smoothing: float
    on_nan: str
    ema_decay: float
    log_every: int
    eval_every: str
    checkpoint_every: str
    bn_group: int | None = None  # devices that share batch norm's statistics; None: all
    weights: str | None = None  # a file whose network is used
    start: str = "weights"  # or scratch: use the file's network with new weights
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_until: str | None = None  # None: the end of the run
    accumulate: int = 1
    teacher: str | None = None
    temperature: float = 1.0
    label_weight: float = 0.5
    recalibrate: int = 0
    final_split: str = "test"

    @property
    def has_mixing(self) -> bool:
        """Tells whether mixup or cutmix is set, even if `mix_until` is 0."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def starts_from_weights(self) -> bool:
        """Tells whether the weights of the file are used, and not only its network."""
        return self.weights is not None and self.start == "weights"

    def flat(self) -> dict[str, Any]:
        """Returns all fields by their dotted names, as on the command line."""
        return flatten_dict(dataclasses.asdict(self), sep=".")


def from_config(config: ml_collections.ConfigDict) -> Settings:
    """Returns the settings of a run from its resolved config.

    Raises UserError for a field that is missing, unknown or has an impossible value.
    """
    if "weights" in config and not config.weights:
        raise UserError("no weights given: set config.weights to a file, as --config.weights FILE")
    settings = Settings(
        **{
            **_fields_of(Settings, config),
            "data": Data(**_fields_of(Data, config.data, "data.")),
            "model": config.model.to_dict(),
            "optimization": optimization(config.optimization),
        }
    )
    check_fields(settings.flat())
    return settings


def defaults() -> dict[str, Any]:
    """Returns the fields that have a default, by dotted name: configs of older runs lack some."""
    classes = {"": Settings, "data.": Data, "optimization.": Optimization}
    return {
        prefix + field.name: field.default
        for prefix, of in classes.items()
        for field in dataclasses.fields(of)
        if field.default is not dataclasses.MISSING
    }


def optimization(config: ml_collections.ConfigDict) -> Optimization:
    """Returns the typed view of `config.optimization`."""
    return Optimization(**_fields_of(Optimization, config, "optimization."))


def _fields_of(
    settings: type, config: ml_collections.ConfigDict, prefix: str = ""
) -> dict[str, Any]:
    """Returns the values that `config` has for the fields of a class of settings.

    Raises UserError for a field that it lacks, and for one that is unknown: a typing error would
    train another network than the config says.
    """
    fields = {field.name: field for field in dataclasses.fields(settings)}
    known = [*fields, *(() if prefix else ("seeds", *BETWEEN_ARMS))]
    for name in config:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{nearest[0]}?" if nearest else "see configs/defaults.py"
            raise UserError(f"the config has the unknown field {prefix}{name}: {hint}")
    for name, field in fields.items():
        if name not in config and field.default is dataclasses.MISSING:
            raise UserError(f"the config lacks the field {prefix}{name}: see configs/defaults.py")
    return {name: config[name] for name in fields if name in config}
