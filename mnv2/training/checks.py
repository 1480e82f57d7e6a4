"""What each field of a config may be, in one table. Checked before anything starts."""

from collections.abc import Mapping
from typing import Any

from mnv2.data.augment import DISTORTIONS, POLICIES, STRENGTHS
from mnv2.data.preprocess import AUGMENTATIONS, INTERPOLATIONS
from mnv2.pretrained.preprocessing import METHODS, NORMALIZATIONS
from mnv2.runtime.checks import Check, choice, number, ordered, pattern, truth, whole
from mnv2.runtime.errors import UserError
from mnv2.training.durations import to_steps

OPTIMIZERS = ("sgd", "rmsprop", "adamw")
SCHEDULES = ("cosine", "exponential", "constant")
FINAL_SPLITS = ("test", "validation")
SMALLEST_ALPHA = 1e-3
MOST_OPERATIONS = 14  # of a policy: each makes the pipeline longer
LARGEST_SEED = 2**32 - 1  # JAX takes 32 bits of a seed


def duration(field: str, value: Any) -> None:
    """Checks a duration such as '2 epochs'; '0 steps' means never."""
    to_steps(str(value), examples=1 << 20, batch_size=1, what=field)


def positive_duration(field: str, value: Any) -> None:
    """Checks a duration that is longer than 0."""
    if not to_steps(str(value), examples=1 << 20, batch_size=1, what=field):
        raise UserError(f"{field} must be greater than 0, got {value!r}")


def path(field: str, value: Any) -> None:
    """Checks the path of a file or folder, which is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{field} must be a path, got {value!r}")


def sizes(field: str, value: Any) -> None:
    """Checks the sizes of pictures, one per part of a run: none, or two or more."""
    if not isinstance(value, tuple | list) or len(value) == 1:
        raise UserError(f"{field} must be () or two sizes or more, as (128, 176), got {value!r}")
    for one in value:
        whole(1)(field, one)


def alpha(field: str, value: Any) -> float:
    """Checks the alpha of a beta distribution, 0 for none. A smaller one is 0 in float32."""
    return value if value == 0 else number(SMALLEST_ALPHA)(field, value)


CHECKS: dict[str, Check] = {
    "seed": whole(0, LARGEST_SEED),
    "batch_size": whole(1),
    "eval_batch_size": whole(1),
    "bn_group": whole(1),
    "duration": positive_duration,
    "label_smoothing": number(0, 1),
    "mixup": alpha,
    "cutmix": alpha,
    "mix_until": duration,
    "accumulate": whole(1),
    "temperature": number(0, low_open=True),
    "label_weight": number(0, 1, high_open=False),
    "recalibrate": whole(0),
    "final_split": choice(FINAL_SPLITS),
    "on_nan": choice(("stop", "skip")),
    "ema_decay": number(0, 1),
    "log_every": whole(1),
    "eval_every": duration,
    "checkpoint_every": duration,
    "start": choice(("weights", "scratch")),
    "weights": path,
    "teacher": path,
    "data.dir": path,
    "data.on_broken": choice(("stop", "skip")),
    "data.validation": whole(0),
    "data.image_size": whole(1),
    "data.augmentation": choice(AUGMENTATIONS),
    "data.pad": whole(0),
    "data.crop_area": ordered(0, 1),
    "data.crop_aspect": ordered(1e-2, 1e2),
    "data.interpolation": choice(tuple(INTERPOLATIONS)),
    "data.distortion": choice(DISTORTIONS),
    "data.policy": choice(POLICIES),
    "data.policy_operations": whole(1, MOST_OPERATIONS),
    "data.policy_strength": whole(0, STRENGTHS - 1),
    "data.policy_interpolation": choice(("nearest", "bilinear")),
    "data.policy_fill": whole(0, 255),
    "data.erasing": number(0, 1, high_open=False),
    "data.repeats": whole(1),
    "data.progressive": sizes,
    "data.normalization": choice(tuple(NORMALIZATIONS)),
    "data.eval_method": choice(tuple(METHODS)),
    "data.eval_crop": number(0, 1, low_open=True, high_open=False),
    "data.eval_size": whole(1),
    "optimization.optimizer": choice(OPTIMIZERS),
    "optimization.schedule": choice(SCHEDULES),
    "optimization.learning_rate": number(0),
    "optimization.warmup": duration,
    "optimization.warmup_from": number(0, 1, high_open=False),
    "optimization.rate_every": positive_duration,
    "optimization.clip": number(0),
    "optimization.nesterov": truth,
    "optimization.momentum": number(0, 1),
    "optimization.weight_decay": number(0),
    "optimization.weight_decay_on": pattern,
    "optimization.norm_weight_decay": number(0),
    "optimization.bias_weight_decay": number(0),
    "optimization.decay_rate": number(0, low_open=True),
    "optimization.decay_every": positive_duration,
    "optimization.rmsprop_decay": number(0, 1),
    "optimization.epsilon": number(0, low_open=True),
    "optimization.backbone_rate": number(0),
    "model.dropout": number(0, 1),
    "model.bn_momentum": number(0, 1),
    "model.bn_epsilon": number(0, low_open=True),
    "model.width": number(0, low_open=True),
    "model.expansion": number(0, low_open=True),
    "model.dtype": choice(("float32", "bfloat16", "float16", "float64")),
}
OPTIONAL = (  # may be None
    *("weights", "teacher", "data.dir", "data.image_size", "data.eval_size"),
    *("bn_group", "mix_until"),
    *("optimization.norm_weight_decay", "optimization.bias_weight_decay"),
)


def check_fields(values: Mapping[str, Any]) -> None:
    """Checks the values of all fields, by dotted name. Raises UserError for an impossible one."""
    for field, value in values.items():
        if field in CHECKS and not (value is None and field in OPTIONAL):
            CHECKS[field](field, value)
