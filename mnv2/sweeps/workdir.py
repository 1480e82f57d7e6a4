"""The folder of a sweep: what it records, and what of it is finished."""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from flax.traverse_util import flatten_dict

from mnv2.runtime.errors import NotFinite, UserError, reason
from mnv2.runtime.files import AnyPath, matches, read_json, to_json, warn_once, write_json
from mnv2.runtime.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, FAILURE, RESULT, SWEEP, TUNING
from mnv2.runtime.processes import is_writer
from mnv2.sweeps.checks import accuracy, check_comparison, check_description, check_result
from mnv2.sweeps.environment import environment, is_environment
from mnv2.sweeps.plan import Run, chosen, plan
from mnv2.training.checks import FINAL_SPLITS
from mnv2.training.classes import check_classes_of_run
from mnv2.training.devices import Devices
from mnv2.training.settings import BETWEEN_ARMS, defaults
from mnv2.training.setup import open_data

# These fields may change while a run is not finished, or to train it longer.
MAY_CHANGE = ("log_every", "eval_every", "checkpoint_every", "eval_batch_size", "on_nan")
SEED = re.compile(r"0|[1-9][0-9]*")  # the name of a run's folder

# What to do about a damaged file.
SWEEP_REMEDY = "delete it, and repeat the command that began the runs: it writes the file again"
RESULT_REMEDY = "delete it, and repeat the command that began the run: it writes it again"
CONFIG_REMEDY = (
    "delete it to resume the run with the config given now, or the folder to start from the "
    "beginning"
)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A workdir as it is now: its config, and the results by arm and seed.

    steps         the number of steps of each arm's runs
    environments  of each run that has recorded one, by its name (arm/seed)
    damaged       the runs whose result cannot be read, by name, and why
    """

    workdir: AnyPath
    config: dict[str, Any]
    steps: dict[str, int]
    results: dict[str, dict[int, dict[str, Any]]]
    environments: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def baseline(self) -> str:
        return self.config["baseline"]

    @property
    def split(self) -> str:
        """The split on which finished runs are evaluated: test, or validation."""
        return _split_of(self.config)

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """The changes that each arm makes to the config."""
        return dict(self.config["arms"])

    def value(self, arm: str, field: str) -> Any:
        """Returns the value of a field, by its dotted name, in the runs of an arm."""
        if field in self.arms[arm]:
            return self.arms[arm][field]
        value: Any = self.config
        for name in field.split("."):
            value = value[name]
        return value

    def accuracies(self, arm: str) -> dict[int, float]:
        """Returns the final accuracy, in per cent, of each finished seed of an arm."""
        return {seed: accuracy(result) for seed, result in self.results.get(arm, {}).items()}

    def runs(self) -> list[tuple[str, int]]:
        """Lists the arms and seeds of the config."""
        return [
            (arm, seed)
            for arm, changes in self.arms.items()
            for seed in _seeds(self.config, changes)
        ]

    def missing(self) -> list[str]:
        """Names the runs of the config that are not finished, as arm/seed."""
        names = [f"{arm}/{seed}" for arm, seed in self.runs() if seed not in self.results[arm]]
        return [name for name in names if name not in self.damaged]


def load(workdir: AnyPath) -> Sweep:
    """Reads what is finished in `workdir`. Raises UserError if it is not the workdir of a sweep."""
    description = _read_description(workdir)
    if description is None:
        if (workdir / TUNING / SWEEP).exists():
            raise UserError(f"the arms of {workdir} are still tuned: see {workdir / TUNING}")
        raise UserError(f"{workdir} is not the --workdir of any runs: it has no {SWEEP}")
    config = description["config"]
    arms = dict(config["arms"])
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm in arms}
    steps = description.get("steps", {})
    environments, damaged = {}, {}
    for arm, seed, path in _result_paths(workdir, list(results)):
        name = f"{arm}/{seed}"
        if seed not in _seeds(config, arms[arm]):
            warn_once(f"{path} is left out: the config has no seed {seed} of {arm}")
            continue
        try:
            result = read_result(path)
            if (split := _split_of(config)) not in result:
                raise UserError(f"{path} has no accuracy on {split}: {RESULT_REMEDY}")
            if result.get("steps", math.inf) >= steps.get(arm, 0):  # otherwise it trains longer now
                results[arm][seed] = result
        except UserError as error:
            damaged[name] = str(error)
        with contextlib.suppress(UserError):  # the report says that it is not recorded
            if is_environment(found := read_json(path.with_name(ENVIRONMENT), "")):
                environments[name] = found
    return Sweep(workdir, config, steps, results, environments, damaged)


def _seeds(config: Mapping[str, Any], changes: Mapping[str, Any]) -> range:
    """Returns the seeds of the arm that makes these changes."""
    return range(config["seed"], config["seed"] + changes.get("seeds", config["seeds"]))


def _split_of(config: Mapping[str, Any]) -> str:
    return config.get("final_split", FINAL_SPLITS[0])  # older configs lack it


def _result_paths(workdir: AnyPath, arms: Sequence[str]) -> list[tuple[str, int, AnyPath]]:
    """Lists the results of the arms in the order of their seeds; names those of other folders."""
    found = []
    for arm in arms:
        for path in matches(workdir / arm, f"*/{RESULT}"):
            if SEED.fullmatch(path.parent.name):
                found.append((arm, int(path.parent.name), path))
            else:
                warn_once(f"{path} is left out: {path.parent.name!r} is no seed")
    return sorted(found, key=lambda one: one[1])


def _read_description(workdir: AnyPath) -> dict[str, Any] | None:
    """Reads sweep.json; None if there is none."""
    path = workdir / SWEEP
    if not path.exists():
        return None
    return check_description(read_json(path, SWEEP_REMEDY), path, SWEEP_REMEDY)


def read_result(path: AnyPath) -> dict[str, Any]:
    """Reads a result.json. Raises UserError if it is damaged."""
    return check_result(read_json(path, RESULT_REMEDY), path, RESULT_REMEDY)


def claim(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str],
    devices: Devices = None,
) -> list[Run]:
    """Records the config in `workdir`, and returns the runs that `only` chooses.

    Each run will compute on as many devices as `devices` has.

    The config may be that of the workdir with a longer duration: its runs are then trained longer,
    all arms alike.

    Raises UserError if the workdir belongs to another config, cannot be written to, or if a run
    cannot start.
    """
    check_comparison(config)
    old = _read_description(workdir)
    lasts_longer = old is not None and old["config"]["duration"] != config.duration
    everything = plan(config, workdir, () if lasts_longer else only, devices)
    runs = chosen(everything, only)
    before = (old or {}).get("steps", {})
    may_change = list(MAY_CHANGE)
    # What a recalibrated run would be trained on with is not what it was trained with.
    recalibrated = any(one.settings.recalibrate for one in everything)
    if not recalibrated and all(one.steps >= before.get(one.arm, 0) for one in everything):
        may_change.append("duration")
    remedy = "choose another --workdir"
    if recalibrated and lasts_longer:
        remedy += ", because a run that was recalibrated cannot be trained longer"
    _check_same(workdir, old, config, runs, may_change, remedy)
    if not all(one.finished for one in runs):
        for one in everything:
            check_classes_of_run(one.folder, open_data(one.settings, devices))
    if is_writer():
        # The environment is that of the last command that had something to do.
        idle = old is not None and all(one.finished for one in runs)
        description = {
            "config": config.to_dict(),
            "environment": old.get("environment", {}) if old and idle else environment(),
            "steps": {
                **before,
                **{one.arm: one.steps for one in everything},
            },
        }
        try:
            if json.loads(to_json(description)) != old:
                write_json(workdir / SWEEP, description)
        except OSError as error:
            raise UserError(f"cannot write to --workdir {workdir}: {reason(error)}") from error
    return runs


def record(one: Run, devices: Devices = None, together: int = 1) -> None:
    """Writes the config and the environment of a run that starts, and forgets its last failure.

    The run computes on `devices`, in one program with the other ones of `together` runs. If it is
    resumed in another environment, those before stay recorded, as `earlier`.
    """
    (one.folder / FAILURE).unlink(missing_ok=True)
    write_json(one.folder / CONFIG, one.config)
    now, before = environment(devices, together), _environments_before(one.folder)
    if before and before[-1] == now:
        before.pop()
    write_json(one.folder / ENVIRONMENT, {**now, **({"earlier": before} if before else {})})


def _environments_before(folder: AnyPath) -> list[dict[str, Any]]:
    """Returns the environments in which the checkpoint of a run was trained; [] without one."""
    if not matches(folder / CHECKPOINTS, "[0-9]*"):
        return []
    with contextlib.suppress(UserError):
        if is_environment(last := read_json(folder / ENVIRONMENT, "")):
            return [*last.pop("earlier", []), last]
    return []


def result_of(one: Run) -> dict[str, Any]:
    """Reads the result of a finished run. Raises UserError if it is damaged."""
    return read_result(one.folder / RESULT)


def failure_of(folder: AnyPath) -> str | None:
    """Returns the last line of a failed run's error; None if the run did not fail."""
    lines = _failure_lines(folder)
    if lines is None:
        return None
    return next((line for line in reversed(lines) if line.strip()), f"{folder / FAILURE} is empty")


def diverged(folder: AnyPath) -> bool:
    """Tells whether a run failed because its loss, gradient or state did not stay finite."""
    return (_failure_lines(folder) or [""])[0] == NotFinite.__name__


def _failure_lines(folder: AnyPath) -> list[str] | None:
    path = folder / FAILURE
    if not path.exists():
        return None
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")


def _check_same(
    workdir: AnyPath,
    old: dict[str, Any] | None,
    config: ml_collections.ConfigDict,
    runs: Sequence[Run],
    may_change: Sequence[str],
    remedy: str,
) -> None:
    """Raises UserError, with a remedy, if `workdir` belongs to another config."""
    if old is not None:
        ignored = ("seeds", *BETWEEN_ARMS, *may_change)
        if difference := _difference(old["config"], config.to_dict(), ignored):
            raise UserError(f"{workdir} holds runs with {difference}; {remedy}")
        if not dict(old["config"]["arms"]).keys() & dict(config.arms).keys():
            raise UserError(f"{workdir} holds the runs of other arms; choose another --workdir")
    for one in runs:
        path = one.folder / CONFIG
        if path.exists():
            theirs = read_json(path, CONFIG_REMEDY)
            if difference := _difference(theirs, one.config, ("seeds", *may_change)):
                raise UserError(f"{path.parent} holds a run with {difference}; {remedy}")
    if old is not None:  # runs that are not chosen now would be reported as something else
        _check_arms(workdir, dict(old["config"]["arms"]), dict(config.arms))


def _check_arms(workdir: AnyPath, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UserError if an arm that has runs is described in another way than they were."""
    for arm in old.keys() & new.keys():
        before, now = (
            {k: v for k, v in json.loads(to_json(dict(changes))).items() if k != "seeds"}
            for changes in (old[arm], new[arm])
        )
        if before != now and matches(workdir / arm, f"*/{CONFIG}"):
            raise UserError(
                f"{workdir} holds runs of arm {arm} with the changes {before}, and not {now}: "
                "give the new arm another name"
            )


def _difference(old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str]) -> str:
    """Names the first field in which two configs differ, and both values; '' if none differs."""
    # A run that began before there was a field has its default value.
    absent = json.loads(to_json(defaults()))
    old_flat = {**absent, **flatten_dict(old, sep=".")}
    new_flat = {**absent, **flatten_dict(json.loads(to_json(new)), sep=".")}
    for field in sorted(old_flat.keys() | new_flat.keys()):
        before, now = old_flat.get(field), new_flat.get(field)
        if before != now and field not in ignored:
            return f"{field} = {before!r} instead of {now!r}"
    return ""
