"""Executes a config with a field to tune: first the runs that tune, then those that compare."""

from collections.abc import Callable, Sequence

import ml_collections

from mnv2.runtime.errors import UserError
from mnv2.runtime.layout import SWEEP, TUNING
from mnv2.runtime.storage import AnyPath
from mnv2.runtime.terminal import first_few, note
from mnv2.sweeps.tuning import choose, compared_config, tuned_field, tuning_config
from mnv2.sweeps.tuning_report import write_tuning
from mnv2.sweeps.workdir import failure_of, load
from mnv2.training.loop import NOT_FINITE

Execute = Callable[[ml_collections.ConfigDict, AnyPath, Sequence[str], bool], None]


def run_tuned(
    config: ml_collections.ConfigDict, workdir: AnyPath, execute: Execute, *, reports: bool = True
) -> None:
    """Tunes the arms of a config, then compares them.

    `execute(config, workdir, only, reports)` executes the runs of a sweep that are not finished, or
    gives them to other processes. As long as those are not finished, nothing is compared. The same
    command goes on. Raises UserError for a config that cannot be tuned, and if a run failed for
    another reason than numbers that did not stay finite.
    """
    candidates, folder = tuning_config(config), workdir / TUNING
    wanted = [name for name in _names(candidates) if name not in _diverged(candidates, folder)]
    try:
        execute(candidates, folder, wanted, False)
    except UserError:
        if not (folder / SWEEP).exists() or _left(candidates, folder):
            raise
    if left := _left(candidates, folder):
        note(
            f"tuning is not finished: {first_few(left)}. When it is, the same command compares the "
            "arms with the values that it finds"
        )
        return
    choices = choose(load(folder))
    if reports:
        write_tuning(tuned_field(config)[0], choices, workdir)
    execute(compared_config(config, choices), workdir, (), reports)


def _names(config: ml_collections.ConfigDict) -> list[str]:
    """Lists the runs of a sweep whose arms have equally many seeds."""
    seeds = range(config.seed, config.seed + config.seeds)
    return [f"{arm}/{seed}" for arm in dict(config.arms) for seed in seeds]


def _diverged(config: ml_collections.ConfigDict, folder: AnyPath) -> set[str]:
    """Names the runs whose loss did not stay finite: with such a value an arm cannot be trained."""
    failures = {name: failure_of(folder / name) for name in _names(config)}
    return {name for name, why in failures.items() if why and why.startswith(NOT_FINITE)}


def _left(config: ml_collections.ConfigDict, folder: AnyPath) -> list[str]:
    """Names the runs that have neither a result nor a loss that is not finite."""
    if not (folder / SWEEP).exists():
        return _names(config)
    sweep, diverged = load(folder), _diverged(config, folder)
    done = {f"{arm}/{seed}" for arm, runs in sweep.results.items() for seed in runs}
    return [name for name in _names(config) if name not in done | diverged]
