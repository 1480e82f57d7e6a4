"""Executes a config with a field to tune: first the runs that tune, then those that compare."""

from collections.abc import Callable, Sequence

import ml_collections

from mnv2.runtime.errors import RunsFailed
from mnv2.runtime.files import AnyPath, read_json
from mnv2.runtime.layout import CONFIG, SWEEP, TUNING
from mnv2.runtime.terminal import first_few, note
from mnv2.sweeps.tuning import choose, compared_config, tuned_field, tuning_config
from mnv2.sweeps.tuning_report import write_tuning
from mnv2.sweeps.workdir import diverged, load

Execute = Callable[[ml_collections.ConfigDict, AnyPath, Sequence[str], bool], None]


def run_tuned(
    config: ml_collections.ConfigDict, workdir: AnyPath, execute: Execute, *, reports: bool = True
) -> None:
    """Tunes the arms of a config, then compares them.

    `execute(config, workdir, only, reports)` executes the runs of a sweep that are not finished, or
    gives them to other processes. As long as those are not finished, nothing is compared. The same
    command goes on. Raises UserError for a config that cannot be tuned or is not that of the
    workdir, and RunsFailed if a run failed for another reason than numbers that are not finite.
    """
    candidates, folder = tuning_config(config), workdir / TUNING
    wanted = [name for name in _names(candidates) if not _gave_up(candidates, folder, name)]
    if wanted:  # no names would mean all of them
        try:
            execute(candidates, folder, wanted, False)
        except RunsFailed:
            if _left(candidates, folder):
                raise
    if left := _left(candidates, folder):
        note(
            f"tuning is not finished: {first_few(left)}. When it is, the same command compares the "
            f"arms with the values that it finds (python -m mnv2.status {folder})"
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


def _gave_up(config: ml_collections.ConfigDict, folder: AnyPath, name: str) -> bool:
    """Tells whether a run did not stay finite, with what the config says about such steps."""
    if not diverged(folder / name):
        return False
    changes = dict(config.arms)[name.rpartition("/")[0]]
    recorded = read_json(folder / name / CONFIG, "delete it")
    return recorded.get("on_nan") == changes.get("on_nan", config.on_nan)


def _left(config: ml_collections.ConfigDict, folder: AnyPath) -> list[str]:
    """Names the runs that have no result, except for those that did not stay finite."""
    if not (folder / SWEEP).exists():
        return _names(config)
    sweep = load(folder)
    done = {f"{arm}/{seed}" for arm, runs in sweep.results.items() for seed in runs}
    return [
        name for name in _names(config) if name not in done and not _gave_up(config, folder, name)
    ]
