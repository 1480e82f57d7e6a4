"""A config's arms and seeds as runs: which there are, which are still to do, and doing them."""

import contextlib
import dataclasses
import importlib.metadata
import json
import platform
import shutil
import subprocess
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict

from mnv2 import report
from mnv2.runtime import compilation_cache
from mnv2.runtime.errors import UserError, check_choice, check_positive
from mnv2.runtime.files import Held, sole_writer, write_json, write_text
from mnv2.runtime.interruption import Stopper
from mnv2.runtime.processes import any_of, of_first
from mnv2.runtime.throughput import format_seconds, waiting_for_input
from mnv2.training.devices import writes
from mnv2.training.loop import RESULT, train_and_evaluate
from mnv2.training.setup import build

SWEEP = "sweep.json"
CONFIG = "config.json"
ENVIRONMENT = "environment.json"
FAILURE = "failure.txt"
BETWEEN_ARMS = ("arms", "panels", "baseline")  # fields that say nothing of a single run
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed, in its own folder."""

    arm: str
    seed: int
    folder: Path
    config: ml_collections.ConfigDict
    steps: int

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.seed}"

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).exists()


def plan(config: ml_collections.ConfigDict, workdir: Path) -> list[Run]:
    """The runs of `config`: the first seed of every arm, then the second.

    Raises UserError if any of them could not start, before the first has.
    """
    try:
        arms = dict(config.arms)
    except (TypeError, ValueError):
        raise UserError(
            f"arms must be pairs of a name and its changes, got {config.arms!r}"
        ) from None
    runs = []
    for arm in arms:
        resolved = resolve(config, arm)
        steps, _, _ = build(resolved).durations
        check_positive(resolved.seeds, f"seeds of arm {arm}")
        for seed in range(resolved.seeds):
            one = resolved.copy_and_resolve_references()
            one.seed = config.seed + seed
            runs.append(Run(arm, one.seed, workdir / arm / str(one.seed), one, steps))
    return sorted(runs, key=lambda run: run.seed)


def chosen(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """All of `runs`, or those that `only` names by their arms or as arm/seed.

    Raises UserError if it names what is not there.
    """
    arms, names = {one.arm for one in runs}, {one.name for one in runs}
    for name in only:
        check_choice(name, names if "/" in name else arms, "run" if "/" in name else "arm")
    return [one for one in runs if not only or one.arm in only or one.name in only]


def resolve(config: ml_collections.ConfigDict, arm: str) -> ml_collections.ConfigDict:
    """The config of one arm: the shared one, changed where the arm says so."""
    resolved = ml_collections.ConfigDict(
        {name: value for name, value in config.items() if name not in BETWEEN_ARMS}
    ).copy_and_resolve_references()
    changes = dict(config.arms)[arm]
    for field in changes:
        if not _has_field(resolved, field):
            raise UserError(f"arm {arm} changes the unknown field {field!r}")
    try:
        resolved.update_from_flattened_dict(changes)
    except TypeError as error:
        raise UserError(f"arm {arm}: {error}") from error
    return resolved


def run(
    config: ml_collections.ConfigDict,
    workdir: Path,
    only: Sequence[str] = (),
    *,
    reports: bool = True,
) -> None:
    """Does every run that is not finished, one after another, then writes the report.

    A run that fails does not keep the others from being done, nor does one that another process
    is doing. Raises UserError at the end if any failed, Stopped if a signal came.
    """
    several = jax.process_count() > 1
    stopper = Stopper(any_of if several else None)
    with stopper.listening():
        failed = _do_all(config, workdir, only, stopper)
    if reports and writes() and report.load(workdir).rows():
        report.write(workdir)
    raise_if_failed(failed)


def raise_if_failed(failed: dict[str, str]) -> None:
    """Raises UserError if any run failed: the names of those that did, and why."""
    if failed:
        raise UserError(
            f"{len(failed)} of the runs failed: "
            + "; ".join(f"{name}: {message}" for name, message in failed.items())
        )


def claim(config: ml_collections.ConfigDict, workdir: Path, only: Sequence[str]) -> list[Run]:
    """The runs to be done in `workdir`, which is made this config's.

    Raises UserError if it is another's, cannot be written to, or a run could not start.
    """
    everything = plan(config, workdir)
    runs = chosen(everything, only)
    _check_same(workdir, config, runs)
    if writes():
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


def _do_all(
    config: ml_collections.ConfigDict, workdir: Path, only: Sequence[str], stopper: Stopper
) -> dict[str, str]:
    """Does the runs; returns what failed, and why."""
    cache = compilation_cache.remember()
    runs = claim(config, workdir, only)
    waiting = [one for one in runs if not of_first(one.finished)]
    if done := len(runs) - len(waiting):
        say(f"{done} of {len(runs)} runs in {workdir} are finished already")
    began, compiling = time.perf_counter(), 0.0
    failed: dict[str, str] = {}
    for number, one in enumerate(waiting, start=done + 1):
        started = time.perf_counter()
        label = f"[{number}/{len(runs)}] {one.name}"
        with contextlib.ExitStack() as held:
            if holder := _hold(one, held):
                say(f"{label:28} is being done by {holder}")
                continue
            try:
                result = _do(one, label, stopper)
            except Exception as error:
                failed[one.name] = _failure(error)
                if writes():
                    _note_failure(one.folder, error)
                if jax.process_count() > 1:
                    raise  # the others are still at it, and would wait for this one
                say(f"{label:28} failed: {failed[one.name]}")
                continue
        if result is None:
            continue
        compiling += result["first_step_seconds"]
        spent = time.perf_counter() - began
        left = spent / (number - done) * (len(runs) - number)
        say(f"{outcome(label, result, time.perf_counter() - started)}  {format_seconds(left)} left")
    if waiting:
        say(
            f"{format_seconds(compiling)} of {format_seconds(time.perf_counter() - began)} were "
            f"first steps, with compilation; what was compiled is kept in {cache}"
        )
    return failed


def outcome(label: str, result: dict[str, Any], seconds: float) -> str:
    """A finished run in one line."""
    return (
        f"{label:28} test {100 * result['test']['accuracy']:5.2f} %  "
        f"{result['images_per_second']:6,.0f} images/s  {format_seconds(seconds):>6}"
        f"{waiting_for_input(result['waiting_for_input'])}"
    )


def say(line: str) -> None:
    """Prints a line at once, in one of the processes."""
    if writes():
        print(line, flush=True)


def _hold(one: Run, until: contextlib.ExitStack) -> str | None:
    """Keeps other processes out of a run's folder; who is in it, if one is."""
    holder = None
    if writes():
        try:
            until.enter_context(sole_writer(one.folder))
        except Held as held:
            holder = str(held)
    return (holder or "another process") if of_first(holder is not None) else None


def result(one: Run) -> dict[str, Any]:
    """Of a finished run."""
    return json.loads((one.folder / RESULT).read_text())


def last_words(one: Run) -> str | None:
    """The last line of a failed run's error."""
    path = one.folder / FAILURE
    return path.read_text().splitlines()[-1] if path.exists() else None


def _do(one: Run, label: str, stopper: Stopper) -> dict[str, Any] | None:
    """One run's result; None if another process has done it in the meantime."""
    if of_first(one.finished):
        return None
    if writes():
        (one.folder / FAILURE).unlink(missing_ok=True)
        write_json(one.folder / CONFIG, one.config.to_dict())
        write_json(one.folder / ENVIRONMENT, environment())
    return train_and_evaluate(one.config, one.folder, label=label, stopper=stopper)


def _failure(error: Exception) -> str:
    """In one line: what a user did, or what went wrong."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def _note_failure(folder: Path, error: Exception) -> None:
    """Leaves the traceback, and the message as its last line, in the run's folder if it can."""
    lines = [] if isinstance(error, UserError) else traceback.format_exception(error)
    with contextlib.suppress(OSError):  # a full disk may be what has failed
        write_text(folder / FAILURE, "".join([*lines, _failure(error), "\n"]))


def environment() -> dict[str, Any]:
    """What a result depends on beside its config: versions, the code's commit, the device."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _check_same(workdir: Path, config: ml_collections.ConfigDict, runs: Sequence[Run]) -> None:
    """Raises UserError if `workdir` is another config's."""
    path = workdir / SWEEP
    if path.exists():
        old = json.loads(path.read_text())["config"]
        if difference := _difference(old, config, ignored=("seeds", *BETWEEN_ARMS)):
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


def _difference(old: dict[str, Any], new: ml_collections.ConfigDict, ignored: Sequence[str]) -> str:
    """The first field in which a config differs from the one that a folder holds; '' if none."""
    old_flat = flatten_dict(old, sep=".")
    new_flat = flatten_dict(json.loads(json.dumps(new.to_dict())), sep=".")
    for field in sorted(old_flat.keys() | new_flat.keys()):
        before, now = old_flat.get(field), new_flat.get(field)
        if before != now and field not in ignored:
            return f"{field} = {before!r} instead of {now!r}"
    return ""


def _has_field(config: Any, dotted: str) -> bool:
    head, _, rest = dotted.partition(".")
    return head in config and (not rest or _has_field(config[head], rest))


def _commit() -> str | None:
    """The git commit of this code, with '+' if it was changed since; None without git."""
    if not shutil.which("git"):
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--abbrev=12"]
    done = subprocess.run([*command, "--dirty=+"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
