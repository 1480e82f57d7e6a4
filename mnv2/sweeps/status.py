"""How far the runs of a sweep are, from the files in its workdir."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from mnv2.runtime.files import holder
from mnv2.runtime.layout import METRICS
from mnv2.runtime.terminal import format_seconds
from mnv2.sweeps.workdir import Sweep, failure_of, load

STATES = ("done", "running", "stopped", "failed", "waiting")


class Status(NamedTuple):
    """The state of one run: one of STATES, and what is known about it."""

    name: str
    state: str
    detail: str


def statuses(workdir: Path) -> list[Status]:
    """Returns the status of every run of a sweep. Raises UserError if there is no sweep."""
    sweep = load(workdir)
    return [Status(f"{arm}/{seed}", *_state(sweep, arm, seed)) for arm, seed in sweep.runs()]


def _state(sweep: Sweep, arm: str, seed: int) -> tuple[str, str]:
    if seed in sweep.results[arm]:
        return "done", f"{sweep.accuracies(arm)[seed]:.2f} %"
    folder = sweep.workdir / arm / str(seed)
    process = holder(folder)
    line = _last_training_line(folder / METRICS)
    progress = f"step {line.get('step', 0)} of {sweep.steps.get(arm, '?')}"
    if process:
        rate = line.get("train/images_per_second")
        if rate and arm in sweep.steps:
            left = (sweep.steps[arm] - line["step"]) * sweep.config["batch_size"] / rate
            progress += f", {rate:,.0f} images/s, {format_seconds(left)} left"
        return "running", f"{progress} ({process})"
    if failure := failure_of(folder):
        return "failed", failure
    return ("stopped", progress) if line else ("waiting", "")


def _last_training_line(path: Path) -> dict[str, Any]:
    """Returns the newest line about training; the last line of a running run may be cut short."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    for line in reversed(lines):
        if line.endswith("\n") and "train/loss" in (values := json.loads(line)):
            return values
    return {}
