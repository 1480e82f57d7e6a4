"""The folder of a sweep: what it records, and what of it is finished."""

import contextlib
import dataclasses
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from mnv2.runtime.errors import NotFinite, UserError
from mnv2.runtime.files import AnyPath, matches, read_json, warn_once, write_text
from mnv2.runtime.layout import ENVIRONMENT, FAILURE, RESULT, SWEEP, TUNING
from mnv2.sweeps.checks import accuracy, check_description, check_result
from mnv2.sweeps.environment import is_environment
from mnv2.training.config import FINAL_SPLITS

SEED = re.compile(r"0|[1-9][0-9]*")  # the name of a run's folder

# What to do about a damaged file.
SWEEP_REMEDY = "delete it, and repeat the command that began the runs: it writes the file again"
RESULT_REMEDY = "delete it, and repeat the command that began the run: it writes it again"


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
    description = read_description(workdir)
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


def read_description(workdir: AnyPath) -> dict[str, Any] | None:
    """Reads sweep.json; None if there is none."""
    path = workdir / SWEEP
    if not path.exists():
        return None
    return check_description(read_json(path, SWEEP_REMEDY), path, SWEEP_REMEDY)


def read_result(path: AnyPath) -> dict[str, Any]:
    """Reads a result.json. Raises UserError if it is damaged."""
    return check_result(read_json(path, RESULT_REMEDY), path, RESULT_REMEDY)


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


def explanation(error: Exception) -> str:
    """Returns one line: a UserError's message, or the type and message of any other error."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def record_failure(folder: AnyPath, error: Exception) -> None:
    """Writes the traceback, with the message as its last line, to the run's folder if possible.

    An error in what a user gave has no traceback. NotFinite has its name as the first line.
    """
    lines = [] if isinstance(error, UserError) else traceback.format_exception(error)
    if isinstance(error, NotFinite):
        lines = [f"{NotFinite.__name__}\n"]
    with contextlib.suppress(OSError):  # a full disk may be what failed
        write_text(folder / FAILURE, "".join([*lines, explanation(error), "\n"]))
