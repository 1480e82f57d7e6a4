"""What each field of a config may be, in one table. Checked before anything starts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnv2.runtime.errors import UserError, check_choice
from mnv2.training.durations import to_steps

Check = Callable[[Any, str], None]


def integer(low: int, high: int | None = None) -> Check:
    """Returns the check for a whole number from `low` to `high`."""
    wanted = f"{low} or more" if high is None else f"{low} to {high}"

    def check(value: Any, field: str) -> None:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < low or (high is not None and value > high):
            raise UserError(f"{field} must be a whole number, {wanted}, got {value!r}")

    return check


def number(low: float, high: float = math.inf, *, low_open: bool = False) -> Check:
    """Returns the check for a number from `low` to below `high`; above `low` if `low_open`."""
    wanted = f"{'greater than' if low_open else 'at least'} {low:g}"
    if high < math.inf:
        wanted += f" and less than {high:g}"

    def check(value: Any, field: str) -> None:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and low <= value < high
        if not fits or (low_open and value == low):
            raise UserError(f"{field} must be {wanted}, got {value!r}")

    return check


def choice(names: Sequence[str]) -> Check:
    """Returns the check for one of `names`."""
    return lambda value, field: check_choice(value, names, field)


def duration(value: Any, field: str) -> None:
    """Checks a duration such as '2 epochs'; '0 steps' means never."""
    to_steps(str(value), examples=1 << 20, batch_size=1, what=field)


def positive_duration(value: Any, field: str) -> None:
    """Checks a duration that is longer than 0."""
    if not to_steps(str(value), examples=1 << 20, batch_size=1, what=field):
        raise UserError(f"{field} must be greater than 0, got {value!r}")


def pattern(value: Any, field: str) -> None:
    """Checks a regular expression."""
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise UserError(f"{field} is not a regular expression: {error}, got {value!r}") from None


CHECKS: dict[str, Check] = {
    "seed": integer(0, 2**32 - 1),
    "batch_size": integer(1),
    "eval_batch_size": integer(1),
    "duration": positive_duration,
    "label_smoothing": number(0, 1),
    "on_nan": choice(("stop", "skip")),
    "ema_decay": number(0, 1),
    "log_every": integer(1),
    "eval_every": duration,
    "checkpoint_every": duration,
    "start": choice(("weights", "scratch")),
    "data.on_broken": choice(("stop", "skip")),
    "data.validation": integer(0),
    "data.image_size": integer(1),
    "data.augmentation": choice(("none", "flip", "crop_flip", "inception")),
    "data.pad": integer(0),
    "optimization.optimizer": choice(("sgd", "rmsprop", "adamw")),
    "optimization.schedule": choice(("cosine", "exponential", "constant")),
    "optimization.learning_rate": number(0),
    "optimization.warmup": duration,
    "optimization.momentum": number(0, 1),
    "optimization.weight_decay": number(0),
    "optimization.weight_decay_on": pattern,
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
OPTIONAL = ("data.image_size", "weights")  # may be None


def check_fields(values: Mapping[str, Any]) -> None:
    """Checks the values of all fields, by dotted name. Raises UserError for an impossible one."""
    for field, value in values.items():
        if field in CHECKS and not (value is None and field in OPTIONAL):
            CHECKS[field](value, field)
