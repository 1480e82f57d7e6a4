"""Chooses the value of one field for each arm on validation, before the arms are compared on test.

    config.tuned = ("optimization.learning_rate", (0.025, 0.05, 0.1))
    config.tuning_seeds = 2

A comparison at one learning rate can only say what the arms do at that rate. So each
arm is first trained with every value, in WORKDIR/tuning, with seeds of its own and without the test
split. Then the arms are compared in WORKDIR, with new seeds: each at the value that is best for the
baseline, and at its own best value, if that is another one. That arm is named ARM@VALUE.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections

from mnv2.runtime.errors import RunsFailed, UserError, whole
from mnv2.runtime.files import AnyPath, read_json, write_text
from mnv2.runtime.layout import CONFIG, SWEEP, TUNING
from mnv2.runtime.terminal import first_few, note
from mnv2.sweeps.launch import is_copy, run_sweep
from mnv2.sweeps.workdir import (
    BETWEEN_ARMS,
    Sweep,
    check_comparison,
    diverged,
    has_field,
    load,
    runs_of,
)

if TYPE_CHECKING:
    from mnv2.sweeps.statistics import Estimate

FIRST_SEED = 1000  # of tuning, after the first seed of the comparison; later if it has more seeds
SEEDS = 2  # if the config does not say how many
# With another of these, the accuracies of two values could not be compared.
SAME_FOR_ALL = ("seed", "seeds", *BETWEEN_ARMS, "data.validation")


class Choice(NamedTuple):
    """What tuning found for an arm.

    value     the value with the highest mean accuracy on validation
    found     the accuracy of every value, in per cent; None if a run did not stay finite
    """

    value: float
    found: dict[float, "Estimate | None"]

    @property
    def end(self) -> str:
        """Says whether the value is the smallest or the largest that was tried; '' if neither."""
        return {min(self.found): "smallest", max(self.found): "largest"}.get(self.value, "")


def tuned_field(config: Mapping[str, Any] | ml_collections.ConfigDict) -> tuple[str, list[float]]:
    """Returns the field that is tuned and its values. Raises UserError if there are no such."""
    try:
        field, values = config["tuned"]
        numbers = sorted(set(values))
    except (TypeError, ValueError):
        field, numbers = None, []
    real = all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers)
    if not isinstance(field, str) or len(numbers) < 2 or not real:
        raise UserError(
            "tuned must be a field and two numbers or more, such as "
            f"('optimization.learning_rate', (0.05, 0.1)), got {config['tuned']!r}"
        )
    if field in SAME_FOR_ALL or not has_field(config, field):
        raise UserError(f"tuned names {field!r}, which is no field of the config that may differ")
    return field, numbers


def tuning_config(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns the sweep that tunes: every arm with every value. It never sees the test split."""
    check_comparison(config)
    field, values = tuned_field(config)
    seeds = config.get("tuning_seeds", SEEDS)
    whole(1)("tuning_seeds", seeds)
    arms: dict[str, dict[str, Any]] = {}
    for arm, changes in dict(config.arms).items():
        if "@" in arm:
            raise UserError(f"arm {arm} needs a name without @, which tuning puts before a value")
        if field in changes:
            raise UserError(f"arm {arm} changes {field}, which is tuned: leave out one of the two")
        fixed = {name: value for name, value in changes.items() if name != "seeds"}
        arms |= {at(arm, value): {**fixed, field: value} for value in values}
    tuning = config.copy_and_resolve_references()
    with tuning.unlocked():
        tuning.arms = tuple(arms.items())
        tuning.baseline = at(config.baseline, values[0])
        tuning.panels = tuple(
            (arm, field, tuple(at(arm, value) for value in values)) for arm in dict(config.arms)
        )
        most = max(changes.get("seeds", config.seeds) for changes in dict(config.arms).values())
        tuning.seed, tuning.seeds = config.seed + max(FIRST_SEED, most), seeds
        tuning.final_split = "validation"
    return tuning


def compared_config(
    config: ml_collections.ConfigDict, choices: Mapping[str, Choice]
) -> ml_collections.ConfigDict:
    """Returns the sweep that compares: each arm at the baseline's value, and at its own."""
    field, _ = tuned_field(config)
    shared = choices[config.baseline].value
    arms: dict[str, dict[str, Any]] = {}
    own = {}
    for arm, changes in dict(config.arms).items():
        arms[arm] = {**changes, field: shared}
        if choices[arm].value != shared:
            own[arm] = at(arm, choices[arm].value)
            arms[own[arm]] = {**changes, field: choices[arm].value}
    compared = config.copy_and_resolve_references()
    with compared.unlocked():
        compared.arms = tuple(arms.items())
        compared.panels = tuple(
            (title, "arm", tuple(name for arm in shown for name in (arm, own.get(arm)) if name))
            if any(arm in own for arm in shown)
            else (title, shown_field, shown)
            for title, shown_field, shown in config.panels
        )
    return compared


def at(arm: str, value: float) -> str:
    """Names an arm with a value of its own."""
    return f"{arm}@{value:.12g}"


def choose(sweep: Sweep) -> dict[str, Choice]:
    """Returns what a finished sweep of tuning found for each arm.

    Of equal values, the smallest is chosen. Raises UserError if no value of an arm stayed finite.
    """
    from mnv2.sweeps.statistics import Estimate  # imports SciPy

    field, values = tuned_field(sweep.config)
    seeds = range(sweep.config["seed"], sweep.config["seed"] + sweep.config["seeds"])
    choices = {}
    for arm in dict.fromkeys(name.rpartition("@")[0] for name in sweep.arms):
        found = {}
        for value in values:
            accuracies = sweep.accuracies(at(arm, value))
            complete = all(seed in accuracies for seed in seeds)
            found[value] = Estimate.of([accuracies[seed] for seed in seeds]) if complete else None
        finite = {value: estimate.mean for value, estimate in found.items() if estimate is not None}
        if not finite:
            raise UserError(
                f"{arm} stayed finite with no value of {field}: tune it from "
                f"{values[0]:g} downwards"
            )
        choices[arm] = Choice(max(finite, key=lambda value: finite[value]), found)
    return choices


def sentences(field: str, choices: Mapping[str, Choice]) -> str:
    """Says what was chosen, and for which arms a better value may lie beyond those tried."""
    estimates = (estimate for choice in choices.values() for estimate in choice.found.values())
    seeds = max(estimate.count for estimate in estimates if estimate)
    said = [
        f"For each arm, {field} was chosen on validation, by the mean of {seeds} "
        f"seed{'s' * (seeds > 1)} which the comparison does not use: "
        + ", ".join(f"{arm} {choice.value:g}" for arm, choice in choices.items())
        + "."
    ]
    for end, direction in (("smallest", "below"), ("largest", "above")):
        if arms := [arm for arm, choice in choices.items() if choice.end == end]:
            said.append(
                f"The value of {', '.join(arms)} is the {end} that was tried: a better one may lie "
                f"{direction} it."
            )
    return " ".join(said)


def run_tuned(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    *,
    reports: bool = True,
    execute: Callable[..., None] = run_sweep,
    **more: Any,
) -> None:
    """Tunes the arms of a config, then compares them.

    `execute`, to which `more` is passed, executes the runs of a sweep or gives them to jobs. As
    long as runs that tune are not finished, nothing is compared. The same command goes on. Raises
    UserError for a config that cannot be tuned or is not that of the workdir, and RunsFailed if a
    run failed for another reason than numbers that are not finite.
    """
    candidates, folder = tuning_config(config), workdir / TUNING
    names = [f"{arm}/{seed}" for arm, seed in runs_of(candidates)]
    wanted = [name for name in names if not _gave_up(candidates, folder, name)]
    if wanted:  # no names would mean all of them
        try:
            execute(candidates, folder, *wanted, reports=reports, **more)
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
    if reports and not is_copy():  # copies of this command come here, too
        said = sentences(tuned_field(config)[0], choices)
        print(f"\n{said}\n", flush=True)
        write_text(workdir / f"{TUNING}.md", f"{said}\n")
    execute(compared_config(config, choices), workdir, reports=reports, **more)


def _gave_up(config: ml_collections.ConfigDict, folder: AnyPath, name: str) -> bool:
    """Tells whether a run did not stay finite, with what the config says about such steps."""
    if not diverged(folder / name):
        return False
    changes = dict(config.arms)[name.rpartition("/")[0]]
    recorded = read_json(folder / name / CONFIG, "delete it")
    return recorded.get("on_nan") == changes.get("on_nan", config.on_nan)


def _left(config: ml_collections.ConfigDict, folder: AnyPath) -> list[str]:
    """Names the runs that have no result, except for those that did not stay finite."""
    results = load(folder).results if (folder / SWEEP).exists() else {}
    left = (f"{arm}/{x}" for arm, x in runs_of(config) if x not in results.get(arm, {}))
    return [name for name in left if not _gave_up(config, folder, name)]
