"""How far the runs of a sweep are, from the files in its workdir."""

from typing import Any, NamedTuple

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath, damaged_line, holder, read_lines
from mnv2.runtime.layout import METRICS
from mnv2.runtime.terminal import format_seconds
from mnv2.sweeps.workdir import Sweep, failure_of, load

STATES = ("done", "running", "stopped", "failed", "damaged", "waiting")


class Status(NamedTuple):
    """The state of one run: one of STATES, and what is known about it."""

    name: str
    state: str
    detail: str


def statuses(workdir: AnyPath) -> list[Status]:
    """Returns the status of every run of a sweep. Raises UserError if there is no sweep."""
    sweep = load(workdir)
    return [Status(f"{arm}/{seed}", *_state(sweep, arm, seed)) for arm, seed in sweep.runs()]


def _state(sweep: Sweep, arm: str, seed: int) -> tuple[str, str]:
    if seed in sweep.results[arm]:
        return "done", f"{sweep.accuracies(arm)[seed]:.2f} %"
    if reason := sweep.damaged.get(f"{arm}/{seed}"):
        return "damaged", reason
    folder = sweep.workdir / arm / str(seed)
    process = holder(folder)
    try:
        line = _last_training_line(folder / METRICS)
    except UserError as error:
        return "damaged", str(error)
    progress = f"step {line.get('step', 0)} of {sweep.steps.get(arm, '?')}"
    if process:
        rate = line.get("train/images_per_second")
        if rate and arm in sweep.steps:
            left = (sweep.steps[arm] - line["step"]) * sweep.value(arm, "batch_size") / rate
            progress += f", {rate:,.0f} images/s, {format_seconds(left)} left"
        return "running", f"{progress} ({process})"
    if failure := failure_of(folder):
        return "failed", failure
    return ("stopped", progress) if line else ("waiting", "")


def _last_training_line(path: AnyPath) -> dict[str, Any]:
    """Returns the newest line about training. Raises UserError for a damaged file."""
    for number, values in reversed(list(enumerate(read_lines(path), start=1))):
        if "train/loss" in values or "train/images_per_second" in values:
            step, rate = values.get("step"), values.get("train/images_per_second", 0)
            if not isinstance(step, int) or not isinstance(rate, int | float):
                raise damaged_line(path, number)
            return values
    return {}
