"""From a config to runs: every arm with every seed, each with its own resolved settings."""

import contextlib
import dataclasses
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mnv2.runtime.errors import UserError, check_choice, reason
from mnv2.runtime.files import (
    AnyPath,
    holder,
    matches,
    read_json,
    read_lines,
    replacing,
    to_json,
    write_json,
)
from mnv2.runtime.layout import CHECKPOINTS, CONFIG, ENVIRONMENT, FAILURE, RESULT, SWEEP
from mnv2.runtime.terminal import note
from mnv2.sweeps.workdir import (
    BETWEEN_ARMS,
    check_comparison,
    environment,
    has_field,
    read_description,
    runs_of,
    seeds_of,
)
from mnv2.training.config import Settings, flat, from_config, with_defaults

# These fields may change while a run is not finished, or to train it longer.
MAY_CHANGE = ("log_every", "eval_every", "checkpoint_every", "eval_batch_size", "on_nan")
CONFIG_REMEDY = (
    "delete it to resume the run with the config given now, or the folder to start from the "
    "beginning"
)


# Fields that configs had before, and their defaults, which did nothing.
GONE = {"data.progressive": [], "recalibrate": 0, "optimization.bias_weight_decay": None}
OPERATIONS = "operations"  # of a recorded config, which its text in data.train has as well
PLAN, ENDED = "plan.pickle", "ended-{}.jsonl"  # in the folder of a launch: see `sweeps.launch`


class Request(NamedTuple):
    """What a command asks for.

    parallel, threads  runs at the same time, and threads of each on a CPU; None: chosen
    meet               joins this process to others; for one run after another
    reports            whether the report is written at the end
    profile            the folder for a trace of some steps of the first run
    """

    config: ml_collections.ConfigDict
    workdir: AnyPath
    only: Sequence[str] = ()
    parallel: int | None = None
    threads: int | None = None
    meet: Callable[[], None] | None = None
    reports: bool = True
    profile: AnyPath | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed, in its own folder.

    config         the resolved config, as it is recorded
    settings       the same, typed
    steps          the number of training steps
    compared       the fields that some arm of the sweep changes
    multiply_adds  of an image in training, forward only; 0 until `claim` counts them
    """

    arm: str
    seed: int
    folder: AnyPath
    config: dict[str, Any]
    settings: Settings
    steps: int
    compared: tuple[str, ...] = ()
    multiply_adds: int = 0

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.seed}"

    @property
    def work(self) -> float:
        """The multiply-adds of all images of the training, forward only."""
        return float(self.multiply_adds) * self.settings.batch_size * self.steps

    def hyperparameters(self) -> dict[str, Any]:
        """Returns what tells the run from others of the sweep: arm, seed, and fields that differ.

        Also each argument of the operations in data.train, as data.train.erase.probability.
        """
        values = self.settings.flat()
        shown = {"arm": self.arm, **{name: values[name] for name in ("seed", *self.compared)}}
        if "data.train" in self.compared:
            operations = self.settings.data.pipeline.flat()
            shown |= {f"data.train.{name}": value for name, value in operations.items()}
        return shown

    @property
    def trained(self) -> int | None:
        """The number of steps after which a result was written; None if there is no result.

        A result that is damaged counts as one after all steps: whoever reads it says what to do.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        try:
            return int(read_json(path, "").get("steps", self.steps))
        except (UserError, TypeError, ValueError):
            return self.steps

    @property
    def finished(self) -> bool:
        trained = self.trained  # reads the result
        return trained is not None and trained >= self.steps


def with_arms(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config with its arms, which may depend on its other fields.

    `config.arms` may be a function that gets the config, with all fields as the command line set
    them, and sets `arms` and what belongs to them. Arms that equal the baseline are left out, after
    a note.
    """
    if not callable(config.get("arms")):
        return config
    found = ml_collections.ConfigDict(
        {name: value for name, value in config.items() if name != "arms"}
    ).copy_and_resolve_references()
    config.arms(found)
    arms = dict(found.arms)
    same = [arm for arm in arms if arm != found.baseline and _is_baseline(found, arms[arm])]
    if same:
        note(f"left out, because they are the baseline {found.baseline}: {', '.join(same)}")
    found.arms = tuple((arm, changes) for arm, changes in arms.items() if arm not in same)
    panels = (
        (title, field, tuple(arm for arm in of if arm not in same))
        for title, field, of in found.panels
    )
    found.panels = tuple(panel for panel in panels if len(panel[2]) > 1)
    return found


def _is_baseline(config: ml_collections.ConfigDict, changes: Mapping[str, Any]) -> bool:
    """Tells whether what an arm changes is what the config has."""
    fields = flat(config.to_dict())
    return all(fields.get(name) == value for name, value in changes.items() if name != "seeds")


def number_of_runs(config: ml_collections.ConfigDict, only: Sequence[str] = ()) -> int:
    """Returns the number of runs of a config, without opening its data or building networks.

    Of those that `only` names, if it names any.
    """
    return sum(not only or arm in only or f"{arm}/{seed}" in only for arm, seed in runs_of(config))


def plan(
    config: ml_collections.ConfigDict, workdir: AnyPath, only: Sequence[str] = ()
) -> list[Run]:
    """Lists the runs of `config`: all arms with the first seed, then with the second, and so on.

    `only` names arms, or runs as arm/seed; the other arms are left out. Raises UserError if any of
    the runs cannot start, and for a name that does not exist.
    """
    from mnv2.training.setup import set_up  # imports JAX

    wanted, arms = _wanted(config, only), dict(config.arms)
    changed_fields = dict.fromkeys(name for changes in arms.values() for name in changes)
    compared = tuple(name for name in changed_fields if name != "seeds")
    runs = []
    for arm, changes in arms.items():
        if arm not in wanted:
            continue
        resolved = resolve(config, arm)
        settings = from_config(resolved)
        steps = set_up(settings).durations.total
        for seed in seeds_of(config, changes):
            folder, recorded = workdir / arm / str(seed), {**resolved.to_dict(), "seed": seed}
            of_seed = dataclasses.replace(settings, seed=seed)
            runs.append(Run(arm, seed, folder, recorded, of_seed, steps, compared))
    return sorted(runs, key=lambda run: run.seed)


def first_settings(config: ml_collections.ConfigDict, only: Sequence[str]) -> Settings:
    """Returns the settings of the first arm that `only` names, or of the first of all."""
    check_comparison(config)
    return from_config(resolve(config, _wanted(config, only)[0]))


def _wanted(config: ml_collections.ConfigDict, only: Sequence[str]) -> list[str]:
    """Lists the arms that `only` names, in its order, or all arms of the config."""
    names = [name.partition("/")[0] for name in only]
    for name in names:
        check_choice(name, dict(config.arms), "arm")
    return names or list(dict(config.arms))


def named(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Returns the runs that `only` names, by arm or as arm/seed; all of them if it is empty.

    Raises UserError for a name that does not exist.
    """
    for name in only:
        if "/" in name:  # arms are checked when runs are planned
            check_choice(name, [run.name for run in runs], "run")
    return [run for run in runs if not only or run.arm in only or run.name in only]


def resolve(config: ml_collections.ConfigDict, arm: str) -> ml_collections.ConfigDict:
    """Returns the config of one arm: the shared config with the changes of the arm."""
    return changed(config, dict(config.arms)[arm], arm)


def changed(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], arm: str
) -> ml_collections.ConfigDict:
    """Returns the shared config with the changes of an arm. Raises UserError for unknown ones."""
    resolved = ml_collections.ConfigDict(
        {name: value for name, value in config.items() if name not in BETWEEN_ARMS}
    ).copy_and_resolve_references()
    for field in changes:
        if not has_field(resolved, field):
            raise UserError(f"arm {arm} changes the unknown field {field!r}")
    try:
        resolved.update_from_flattened_dict(changes)
    except TypeError as error:
        raise UserError(f"arm {arm}: {error}") from error
    return resolved


def claim(config: ml_collections.ConfigDict, workdir: AnyPath, only: Sequence[str]) -> list[Run]:
    """Records the config in `workdir`, and returns the runs that `only` names.

    The config may be that of the workdir with a longer duration: its runs are then trained longer,
    all arms alike.

    Raises UserError if the workdir belongs to another config, cannot be written to, or if a run
    cannot start.
    """
    from mnv2.runtime.processes import is_writer  # these import JAX
    from mnv2.training.classes import check_classes_of_run
    from mnv2.training.setup import open_data

    check_comparison(config)
    old = read_description(workdir)
    lasts_longer = old is not None and old["config"]["duration"] != config.duration
    everything = plan(config, workdir, () if lasts_longer else only)
    runs = named(everything, only)
    before = (old or {}).get("steps", {})
    longer = all(run.steps >= before.get(run.arm, 0) for run in everything)
    _check_same(workdir, old, config, (*MAY_CHANGE, "duration") if longer else MAY_CHANGE)
    if not all(run.finished for run in runs):
        for run in everything:
            check_classes_of_run(run.folder, open_data(run.settings))
    work = dict((old or {}).get("multiply_adds", {}))  # a copy: `old` is compared below
    for run in runs:
        if run.arm not in work and not run.finished:
            work[run.arm] = _multiply_adds(run)  # traces the network, which takes a second
    if is_writer():
        description = {
            "config": config.to_dict(),
            "steps": {**before, **{run.arm: run.steps for run in everything}},
            "multiply_adds": work,
        }
        try:
            if json.loads(to_json(description)) != old:
                write_json(workdir / SWEEP, description)
        except OSError as error:
            raise UserError(f"cannot write to --workdir {workdir}: {reason(error)}") from error
    return [dataclasses.replace(run, multiply_adds=work.get(run.arm, 0)) for run in runs]


def _multiply_adds(run: Run) -> int:
    """Counts the multiply-adds of an image in training, forward only."""
    from mnv2.analysis import complexity  # these import JAX
    from mnv2.training.setup import set_up

    setup = set_up(run.settings)
    return complexity.multiply_adds(setup.model, setup.train_view.shape)


def _check_same(
    workdir: AnyPath,
    old: dict[str, Any] | None,
    config: ml_collections.ConfigDict,
    may_change: Sequence[str],
) -> None:
    """Raises UserError if `workdir` belongs to another config."""
    ignored, remedy = ("seeds", *BETWEEN_ARMS, *may_change), "choose another --workdir"
    if old is not None:
        if difference := _difference(old["config"], config.to_dict(), ignored):
            raise UserError(f"{workdir} holds runs with {difference}; {remedy}")
        if not dict(old["config"]["arms"]).keys() & dict(config.arms).keys():
            raise UserError(f"{workdir} holds the runs of other arms; choose another --workdir")
    for arm in dict(config.arms):  # also those that are not chosen now: they are reported
        for path in matches(workdir / arm, f"*/{CONFIG}"):
            recorded = read_json(path, CONFIG_REMEDY)
            of_arm = {**resolve(config, arm).to_dict(), "seed": recorded.get("seed")}
            if difference := _difference(recorded, of_arm, ignored):
                raise UserError(f"{path.parent} holds a run with {difference}; {remedy}")


def _difference(old: dict[str, Any], new: dict[str, Any], ignored: Sequence[str]) -> str:
    """Names the first field in which two configs differ, and both values; '' if none differs."""
    old = {name: value for name, value in old.items() if name != OPERATIONS}
    # From JSON, in which tuples are lists; with the defaults of fields that it lacks.
    old_flat, new_flat = (json.loads(to_json(with_defaults(flat(config)))) for config in (old, new))
    for field in sorted(old_flat.keys() | new_flat.keys()):
        before, now = old_flat.get(field), new_flat.get(field)
        is_gone = field in GONE and before == GONE[field]
        if before != now and field not in ignored and not is_gone:
            return f"{field} = {before!r} instead of {now!r}"
    return ""


def record(run: Run) -> None:
    """Writes the config and the environment of a run that starts, and forgets its last failure.

    Beside the fields there is each argument of the operations in data.train, for other programs.
    If it is resumed in another environment, those before stay recorded, as `earlier`.
    """
    (run.folder / FAILURE).unlink(missing_ok=True)
    operations = run.settings.data.pipeline.flat()
    write_json(run.folder / CONFIG, {**run.config, OPERATIONS: operations})
    now, before = environment(), _environments_before(run.folder)
    if before and before[-1] == now:
        before.pop()
    write_json(run.folder / ENVIRONMENT, {**now, **({"earlier": before} if before else {})})


def _environments_before(folder: AnyPath) -> list[dict[str, Any]]:
    """Returns the environments in which the checkpoint of a run was trained; [] without one."""
    if not matches(folder / CHECKPOINTS, "[0-9]*"):
        return []
    with contextlib.suppress(UserError):
        last = read_json(folder / ENVIRONMENT, "")
        return [*last.pop("earlier", []), last]
    return []


class Plan(NamedTuple):
    """What the first copy of a command has planned, for its parent and the other copies.

    runs          in the order in which they begin
    copies        the number of copies that execute them
    environments  the environment variables of each copy
    writes        whether this command writes the report: of several machines, one does
    """

    runs: list[Run]
    copies: int
    environments: list[dict[str, str]]
    writes: bool

    def write(self, folder: Path) -> None:
        """Writes the plan to the folder of a launch."""
        with replacing(folder / PLAN) as unfinished:
            unfinished.write_bytes(pickle.dumps(self))


def read_plan(folder: Path) -> Plan | None:
    """Reads the plan in the folder of a launch; None if the first copy has not written it yet."""
    path = folder / PLAN
    return pickle.loads(path.read_bytes()) if path.exists() else None


def failures(folder: Path) -> dict[str, str]:
    """Returns the names of the runs that failed in any copy, and why. No copy takes them again."""
    ended = (outcome for path in folder.glob(ENDED.format("*")) for outcome in read_lines(path))
    return {outcome["run"]: outcome["failure"] for outcome in ended if "failure" in outcome}


def left_over(runs: Sequence[Run], failed: Mapping[str, str]) -> dict[str, str | None]:
    """Returns the names of the runs that have no result and did not fail.

    Each with the process that executes it, if there is one.
    """
    left = (run for run in runs if run.name not in failed and not run.finished)
    return {run.name: holder(run.folder) for run in left}
