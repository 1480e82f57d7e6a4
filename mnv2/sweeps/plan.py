"""From a config to runs: every arm with every seed, each with its own resolved settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
from flax.traverse_util import flatten_dict

from mnv2.runtime.checks import whole
from mnv2.runtime.errors import UserError, check_choice
from mnv2.runtime.files import AnyPath, read_json
from mnv2.runtime.layout import RESULT
from mnv2.runtime.terminal import note
from mnv2.sweeps.checks import has_field
from mnv2.training import settings
from mnv2.training.checks import LARGEST_SEED
from mnv2.training.devices import Devices
from mnv2.training.setup import set_up


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed, in its own folder.

    config    the resolved config, as it is recorded
    settings  the same, typed
    steps     the number of training steps
    """

    arm: str
    seed: int
    folder: AnyPath
    config: dict[str, Any]
    settings: settings.Settings
    steps: int

    @property
    def name(self) -> str:
        return f"{self.arm}/{self.seed}"

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


class Outcome(NamedTuple):
    """How an attempt at a run ended: with one of the three, or none if it was finished before.

    failure  in one line
    holder   the process that executes the run
    seconds  of the attempt
    """

    result: dict[str, Any] | None = None
    failure: str | None = None
    holder: str | None = None
    seconds: float = 0.0


def with_arms(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a config with its arms, which may depend on its other fields.

    `config.arms` may be a function that gets the config, with all fields as the command line set
    them, and sets `arms` and what belongs to them. Arms that equal the baseline are left out, after
    a note.
    """
    if not callable(config.arms):
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
    fields = flatten_dict(config.to_dict(), sep=".")
    return all(fields.get(name) == value for name, value in changes.items() if name != "seeds")


def number_of_runs(config: ml_collections.ConfigDict) -> int:
    """Returns the number of runs of a config, without opening its data or building networks."""
    arms = dict(config.arms)
    return sum(len(_seeds(config, arm, changes)) for arm, changes in arms.items())


def _seeds(config: ml_collections.ConfigDict, arm: str, changes: Mapping[str, Any]) -> range:
    """Returns the seeds of an arm. Raises UserError if there cannot be so many."""
    whole(1)("seeds", config.seeds)
    count = whole(1)(f"seeds of arm {arm}", changes.get("seeds", config.seeds))
    first = whole(0, LARGEST_SEED)(f"seed of arm {arm}", config.seed)
    whole(0, LARGEST_SEED)(f"the last seed of arm {arm}", first + count - 1)
    return range(first, first + count)


def plan(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str] = (),
    devices: Devices = None,
) -> list[Run]:
    """Lists the runs of `config`: all arms with the first seed, then with the second, and so on.

    `only` names arms, or runs as arm/seed; the other arms are left out. Each run will compute on as
    many devices as `devices` has. Raises UserError if any of
    the runs cannot start, and for a name that does not exist.
    """
    wanted = _wanted(config, only)
    runs = []
    for arm, changes in dict(config.arms).items():
        if arm not in wanted:
            continue
        resolved = resolve(config, arm)
        of_arm = settings.from_config(resolved)
        steps = set_up(of_arm, devices).durations.total
        for seed in _seeds(config, arm, changes):
            runs.append(
                Run(
                    arm,
                    seed,
                    workdir / arm / str(seed),
                    {**resolved.to_dict(), "seed": seed},
                    dataclasses.replace(of_arm, seed=seed),
                    steps,
                )
            )
    return sorted(runs, key=lambda run: run.seed)


def first_settings(config: ml_collections.ConfigDict, only: Sequence[str]) -> settings.Settings:
    """Returns the settings of the first arm that `only` names, or of the first of all."""
    names = _wanted(config, only)
    return settings.from_config(resolve(config, names[0]))


def _wanted(config: ml_collections.ConfigDict, only: Sequence[str]) -> list[str]:
    """Lists the arms that `only` names, in its order, or all arms of the config."""
    try:
        arms = dict(config.arms)
    except (TypeError, ValueError):
        raise UserError(
            f"arms must be pairs of a name and its changes, got {config.arms!r}"
        ) from None
    names = [name.partition("/")[0] for name in only]
    for name in names:
        check_choice(name, arms, "arm")
    return names or list(arms)


def chosen(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Returns the runs that `only` names, by arm or as arm/seed; all of them if it is empty.

    Raises UserError for a name that does not exist.
    """
    arms, names = {one.arm for one in runs}, {one.name for one in runs}
    for name in only:
        check_choice(name, names if "/" in name else arms, "run" if "/" in name else "arm")
    return [one for one in runs if not only or one.arm in only or one.name in only]


def resolve(config: ml_collections.ConfigDict, arm: str) -> ml_collections.ConfigDict:
    """Returns the config of one arm: the shared config with the changes of the arm."""
    return changed(config, dict(config.arms)[arm], arm)


def changed(
    config: ml_collections.ConfigDict, changes: Mapping[str, Any], arm: str
) -> ml_collections.ConfigDict:
    """Returns the shared config with the changes of an arm. Raises UserError for unknown ones."""
    resolved = ml_collections.ConfigDict(
        {name: value for name, value in config.items() if name not in settings.BETWEEN_ARMS}
    ).copy_and_resolve_references()
    for field in changes:
        if not has_field(resolved, field):
            raise UserError(f"arm {arm} changes the unknown field {field!r}")
    try:
        resolved.update_from_flattened_dict(changes)
    except TypeError as error:
        raise UserError(f"arm {arm}: {error}") from error
    return resolved
