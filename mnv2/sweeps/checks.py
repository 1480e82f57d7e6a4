"""Is a sweep complete? Checks its config before it starts, and its files when they are read."""

import re
import sys
from collections.abc import Mapping
from typing import Any

import ml_collections

from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import AnyPath
from mnv2.runtime.layout import REPORT, SLURM, SWEEP, TUNING
from mnv2.training.config import FINAL_SPLITS, OF_SWEEP

CHANGES = (Mapping, ml_collections.ConfigDict)  # the types of what an arm changes
# The name of an arm: also that of a folder, a cell of Markdown tables and an argument of --only.
NAME = re.compile(r"(?! )[^/\\,|\x00-\x1f]+(?<! )")
LONGEST = 100  # bytes of a name
RESERVED = (  # other names in a workdir
    *(".", "..", SWEEP, SLURM),
    *(name + suffix for name in (REPORT, TUNING) for suffix in ("", ".md", ".csv", ".png")),
)

BETWEEN_ARMS = tuple(name for name in OF_SWEEP if name != "seeds")  # of no single run
SHARED = ("seed", "seeds", "data", "model", "optimization")  # fields that plans are made of
FIELDS = {  # of a sweep: what each must be
    "arms": "pairs of a name and its changes, such as (('wide', {'model.width': 1.0}),)",
    "baseline": "the name of an arm",
    "panels": "triples of a title, a field and arms, such as (('w', 'model.width', ('a', 'b')),)",
}


def check_comparison(config: ml_collections.ConfigDict) -> None:
    """Checks the fields of a config that compare runs. Raises UserError for an impossible one.

    A report needs them, after hours of training.
    """
    for field, wanted in FIELDS.items():
        if field not in config:
            raise UserError(f"the config lacks {field}: {wanted}; see configs/v2_ablation.py")
    for field in SHARED:
        if field not in config:
            raise UserError(f"the config lacks {field}: see configs/defaults.py")
    arms = _arms(config.arms)
    check_choice(config.baseline, arms, "baseline")
    try:
        panels = [(str(title), str(field), shown) for title, field, shown in config.panels]
    except (TypeError, ValueError):
        raise UserError(f"panels must be {FIELDS['panels']}, got {config.panels!r}") from None
    for title, field, shown in panels:
        several = isinstance(shown, tuple | list) and all(isinstance(arm, str) for arm in shown)
        if not several:  # a preset may lack some of them
            raise UserError(
                f"panel {title!r} must end with names of arms, such as ({arms[0]!r},), "
                f"got {shown!r}"
            )
        if field != "arm" and not has_field(config, field):
            raise UserError(f"panel {title!r} shows {field!r}, which is no field of the config")


def _arms(given: Any) -> list[str]:
    """Returns the names of the arms, which are also the names of folders."""
    try:
        pairs = [(name, changes) for name, changes in given]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(isinstance(changes, CHANGES) for _, changes in pairs):
        raise UserError(f"arms must be {FIELDS['arms']}, got {given!r}")
    names = [name for name, _ in pairs]
    for name, changes in pairs:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name in RESERVED:
            raise UserError(
                f"{name!r} cannot be the name of an arm: it must be that of a folder, without | "
                "and commas"
            )
        if len(name.encode(errors="replace")) > LONGEST:
            raise UserError(f"the name of an arm may have {LONGEST} bytes, got {name!r}")
        if fixed := sorted({"seed", "final_split"} & changes.keys()):
            raise UserError(f"arm {name} changes {fixed[0]}, which must be the same for all arms")
        if names.count(name) > 1:
            raise UserError(f"arms must have different names, got {name!r} twice")
    return names


def has_field(config: Any, dotted: str) -> bool:
    """Tells whether a config has a field, by its dotted name."""
    head, _, rest = dotted.partition(".")
    try:
        return head in config and (not rest or has_field(config[head], rest))
    except TypeError:  # not a group of fields
        return False


def check_description(value: dict[str, Any], path: AnyPath, remedy: str) -> dict[str, Any]:
    """Returns the content of a sweep.json. Raises UserError if it lacks what a report needs."""
    try:
        config = value["config"]
        check_comparison(ml_collections.ConfigDict(config))
        for field in ("seed", "seeds", "batch_size"):
            _expect(isinstance(config[field], int), f"config.{field}", config[field])
        for arm, changes in config["arms"]:
            seeds = changes.get("seeds", 1)
            _expect(isinstance(seeds, int), f"seeds of arm {arm}", seeds)
        _expect(isinstance(config["data"]["name"], str), "config.data.name", config["data"]["name"])
        _expect("duration" in config, "config.duration", None)
        steps = value.get("steps", {})
        _expect(isinstance(steps, dict), "steps", steps)
        _expect(all(isinstance(count, int) for count in steps.values()), "steps", steps)
    except KeyError as error:
        raise UserError(f"{path} is damaged (it lacks {error.args[0]}): {remedy}") from None
    except (TypeError, ValueError, AttributeError) as error:  # also a UserError
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({reason}): {remedy}") from None
    return value


def check_result(value: dict[str, Any], path: AnyPath, remedy: str) -> dict[str, Any]:
    """Returns the content of a result.json. Raises UserError if it lacks what a report needs."""
    split = final_split(value)
    summary = value.get(split)
    steps = value.get("steps", 0)
    accuracy: Any = summary.get("accuracy") if isinstance(summary, dict) else None
    numbers = ("parameters", "multiply_adds", "images_per_second", "train_seconds")
    try:
        _expect(_number(accuracy) and accuracy <= 1, f"{split}.accuracy", accuracy)
        _expect(isinstance(steps, int) and not isinstance(steps, bool), "steps", steps)
        for field in numbers:
            _expect(_number(value.get(field)), field, value.get(field))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from None
    return value


def final_split(result: Mapping[str, Any]) -> str:
    """Returns the split on which a finished run was evaluated: test, or validation."""
    return next((split for split in FINAL_SPLITS if split in result), FINAL_SPLITS[0])


def accuracy(result: Mapping[str, Any]) -> float:
    """Returns the accuracy of a finished run, in per cent."""
    return float(100 * result[final_split(result)]["accuracy"])


def _number(value: Any) -> bool:
    """Tells whether a value is a finite number that is not negative, and no larger than a float."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return bool(real and 0 <= value <= sys.float_info.max)


def _expect(fits: bool, field: str, value: Any) -> None:
    if not fits:
        raise ValueError(f"{field} cannot be {value!r}")
