"""The folder of a sweep: what it records, and what of it is finished."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_json
from mnv2.runtime.layout import CONFIG, ENVIRONMENT, FAILURE, RESULT, SWEEP
from mnv2.runtime.processes import is_writer
from mnv2.sweeps.plan import BETWEEN_ARMS, Run, chosen, plan

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A workdir as it is now: its config, and the results by arm and seed."""

    workdir: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    steps: dict[str, int]  # of each arm's runs
    results: dict[str, dict[int, dict[str, Any]]]

    @property
    def baseline(self) -> str:
        return self.config["baseline"]

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """The changes that each arm makes to the config."""
        return dict(self.config["arms"])

    def accuracies(self, arm: str) -> dict[int, float]:
        """Returns the test accuracy, in per cent, of each finished seed of an arm."""
        runs = self.results.get(arm, {})
        return {seed: 100 * result["test"]["accuracy"] for seed, result in runs.items()}

    def runs(self) -> list[tuple[str, int]]:
        """Lists the arms and seeds of the config."""
        return [(arm, seed) for arm, changes in self.arms.items() for seed in self._seeds(changes)]

    def missing(self) -> list[str]:
        """Names the runs of the config that are not finished, as arm/seed."""
        return [f"{arm}/{seed}" for arm, seed in self.runs() if seed not in self.results[arm]]

    def _seeds(self, changes: dict[str, Any]) -> range:
        first = self.config["seed"]
        return range(first, first + changes.get("seeds", self.config["seeds"]))


def load(workdir: Path) -> Sweep:
    """Reads what is finished in `workdir`. Raises UserError if it is not the workdir of a sweep."""
    path = workdir / SWEEP
    if not path.exists():
        raise UserError(f"{workdir} is not the --workdir of any runs: it has no {path.name}")
    description = json.loads(path.read_text())
    results: dict[str, dict[int, dict[str, Any]]] = {}
    for arm in dict(description["config"]["arms"]):
        paths = sorted((workdir / arm).glob(f"*/{RESULT}"), key=lambda p: int(p.parent.name))
        results[arm] = {int(path.parent.name): json.loads(path.read_text()) for path in paths}
    return Sweep(
        workdir,
        description["config"],
        description["environment"],
        description.get("steps", {}),
        results,
    )


def claim(config: ml_collections.ConfigDict, workdir: Path, only: Sequence[str]) -> list[Run]:
    """Records the config in `workdir`, and returns the runs that `only` chooses.

    Raises UserError if the workdir belongs to another config, cannot be written to, or if a run
    cannot start.
    """
    everything = plan(config, workdir)
    runs = chosen(everything, only)
    _check_same(workdir, config, runs)
    if is_writer():
        try:
            description = {
                "config": config.to_dict(),
                "environment": environment(),
                "steps": {one.arm: one.steps for one in everything},
            }
            write_json(workdir / SWEEP, description)
        except OSError as error:
            raise UserError(f"cannot write to --workdir {workdir}: {error.strerror}") from error
    return runs


def record(one: Run) -> None:
    """Writes the config and the environment of a run that starts, and forgets its last failure."""
    (one.folder / FAILURE).unlink(missing_ok=True)
    write_json(one.folder / CONFIG, one.config)
    write_json(one.folder / ENVIRONMENT, environment())


def result_of(one: Run) -> dict[str, Any]:
    """Reads the result of a finished run."""
    return json.loads((one.folder / RESULT).read_text())


def failure_of(folder: Path) -> str | None:
    """Returns the last line of a failed run's error; None if the run did not fail."""
    path = folder / FAILURE
    return path.read_text().splitlines()[-1] if path.exists() else None


def environment() -> dict[str, Any]:
    """Returns what a result depends on besides its config: versions, commit, devices."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _commit() -> str | None:
    """Returns the git commit of this code, with '+' if it was changed since; None without git."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12"]
    done = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _check_same(workdir: Path, config: ml_collections.ConfigDict, runs: Sequence[Run]) -> None:
    """Raises UserError if `workdir` belongs to another config."""
    path = workdir / SWEEP
    if path.exists():
        old = json.loads(path.read_text())["config"]
        ignored = ("seeds", *BETWEEN_ARMS)
        if difference := _difference(old, config.to_dict(), ignored):
            raise UserError(f"{workdir} holds runs with {difference}; choose another --workdir")
        if not dict(old["arms"]).keys() & dict(config.arms).keys():
            raise UserError(f"{workdir} holds the runs of other arms; choose another --workdir")
    for one in runs:
        path = one.folder / CONFIG
        if path.exists():
            old = json.loads(path.read_text())
            if difference := _difference(old, one.config, ignored=("seeds",)):
                raise UserError(
                    f"{path.parent} holds a run with {difference}; choose another --workdir"
                )


def _difference(old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str]) -> str:
    """Names the first field in which two configs differ, and both values; '' if none differs."""
    old_flat = flatten_dict(old, sep=".")
    new_flat = flatten_dict(json.loads(json.dumps(new)), sep=".")
    for field in sorted(old_flat.keys() | new_flat.keys()):
        before, now = old_flat.get(field), new_flat.get(field)
        if before != now and field not in ignored:
            return f"{field} = {before!r} instead of {now!r}"
    return ""
