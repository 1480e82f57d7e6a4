"""The folder of a sweep: what it records, and what of it is finished. Reads without JAX."""

import contextlib
import dataclasses
import importlib.metadata
import math
import platform
import re
import shutil
import subprocess
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections

from mnv2.runtime.errors import NotFinite, UserError, check_choice, number, whole
from mnv2.runtime.files import AnyPath, did_you_mean, matches, read_json, write_text
from mnv2.runtime.layout import FAILURE, REPORT, RESULT, SLURM, SWEEP, TUNING
from mnv2.runtime.machine import threads
from mnv2.runtime.terminal import warn_once
from mnv2.training.config import FIELDS, FINAL_SPLITS, LARGEST_SEED, OF_SWEEP, flat

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy")
CHANGES = (Mapping, ml_collections.ConfigDict)  # the types of what an arm changes
# The name of an arm: also that of a folder, a cell of Markdown tables and an argument of --only.
NAME = re.compile(r"(?! )[^/\\,|\x00-\x1f]+(?<! )")
LONGEST = 100  # bytes of a name
RESERVED = (  # other names in a workdir
    *(".", "..", SWEEP, SLURM),
    *(name + suffix for name in (REPORT, TUNING) for suffix in ("", ".md", ".csv", ".png")),
)

BETWEEN_ARMS = tuple(name for name in OF_SWEEP if name != "seeds")  # of no single run
SHARED = ("seed", "seeds", "data", "model", "optimization")  # fields that plans are made of
COMPARED = {  # fields of a sweep: what each must be
    "arms": "pairs of a name and its changes, such as (('wide', {'model.width': 1.0}),)",
    "baseline": "the name of an arm",
    "panels": "triples of a title, a field and arms, such as (('w', 'model.width', ('a', 'b')),)",
}

# What to do about a damaged file.
SWEEP_REMEDY = "delete it, and repeat the command that began the runs: it writes the file again"
RESULT_REMEDY = "delete it, and repeat the command that began the run: it writes it again"


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A workdir as it is now: its config, and the results by arm and seed.

    steps    the number of steps of each arm's runs
    damaged  the runs whose result cannot be read, by name (arm/seed), and why
    """

    workdir: AnyPath
    config: dict[str, Any]
    steps: dict[str, int]
    results: dict[str, dict[int, dict[str, Any]]]
    damaged: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def baseline(self) -> str:
        return self.config["baseline"]

    @property
    def split(self) -> str:
        """The split on which finished runs are evaluated: test, or validation."""
        return self.config.get("final_split", FINAL_SPLITS[0])  # older configs lack it

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """The changes that each arm makes to the config."""
        return dict(self.config["arms"])

    def value(self, arm: str, field: str) -> Any:
        """Returns the value of a field, by its dotted name, in the runs of an arm."""
        return {**flat(self.config), **self.arms[arm]}[field]

    def accuracies(self, arm: str) -> dict[int, float]:
        """Returns the final accuracy, in per cent, of each finished seed of an arm."""
        return {seed: accuracy(result) for seed, result in self.results.get(arm, {}).items()}

    def runs(self) -> list[tuple[str, int]]:
        """Lists the arms and seeds of the config."""
        return runs_of(self.config)

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
        raise UserError(f"{workdir} is not the --workdir of any runs{_workdir_near(workdir)}")
    config, steps = description["config"], description.get("steps", {})
    results: dict[str, dict[int, dict[str, Any]]] = {arm: {} for arm, _ in config["arms"]}
    sweep = Sweep(workdir, config, steps, results)
    for arm, changes in sweep.arms.items():
        paths = {path.parent.name: path for path in matches(workdir / arm, f"*/{RESULT}")}
        for seed in seeds_of(config, changes):
            path = paths.pop(str(seed), None)
            if path is None:
                continue
            try:
                result = read_result(path)
                if sweep.split not in result:
                    raise UserError(f"{path} has no accuracy on {sweep.split}: {RESULT_REMEDY}")
                if result.get("steps", math.inf) >= steps.get(arm, 0):  # else it trains longer now
                    results[arm][seed] = result
            except UserError as error:
                sweep.damaged[f"{arm}/{seed}"] = str(error)
        for path in paths.values():
            warn_once(f"{path} is left out: the config has no seed {path.parent.name} of {arm}")
    return sweep


def _workdir_near(folder: AnyPath) -> str:
    """Says which workdir is meant by a folder that is none: of a run, around workdirs, mistyped."""
    if not folder.exists():
        return did_you_mean(folder) or ": there is no such folder"
    above = [path for path in folder.parents[:2] if (path / SWEEP).exists()]
    near = above or [path.parent for path in matches(folder, f"*/{SWEEP}")]
    return f": did you mean {near[0]}?" if near else f": it has no {SWEEP}"


def seeds_of(
    config: Mapping[str, Any] | ml_collections.ConfigDict, changes: Mapping[str, Any]
) -> range:
    """Returns the seeds of the arm that makes these changes."""
    return range(config["seed"], config["seed"] + changes.get("seeds", config["seeds"]))


def runs_of(config: Mapping[str, Any] | ml_collections.ConfigDict) -> list[tuple[str, int]]:
    """Lists the arms and seeds of a config."""
    arms = dict(config["arms"])
    return [(arm, seed) for arm in arms for seed in seeds_of(config, arms[arm])]


def read_description(workdir: AnyPath) -> dict[str, Any] | None:
    """Reads sweep.json; None if there is none."""
    path = workdir / SWEEP
    if not path.exists():
        return None
    description = read_json(path, SWEEP_REMEDY)
    with _naming(path, SWEEP_REMEDY):
        config = description["config"]
        check_comparison(ml_collections.ConfigDict(config))
        values = flat(config)
        for field in ("seed", "batch_size", "duration", "data.name"):
            FIELDS[field].metadata["check"](field, values[field])
        for arm, count in description.get("steps", {}).items():
            whole(0)(f"steps of {arm}", count)
    return description


def read_result(path: AnyPath) -> dict[str, Any]:
    """Reads a result.json. Raises UserError if it lacks what a report needs."""
    result = read_json(path, RESULT_REMEDY)
    with _naming(path, RESULT_REMEDY):
        split = final_split(result)
        number(0, 1, high_open=False)(f"{split}.accuracy", result[split]["accuracy"])
        whole(0)("steps", result.get("steps", 0))
        for field in ("parameters", "multiply_adds", "images_per_second", "train_seconds"):
            number(0)(field, result[field])
    return result


@contextlib.contextmanager
def _naming(path: AnyPath, remedy: str) -> Iterator[None]:
    """Raises UserError that names the file in which a value is missing or wrong."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path} is damaged (it lacks {error.args[0]}): {remedy}") from None
    except (AttributeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged ({text}): {remedy}") from None


def failure_of(folder: AnyPath) -> str | None:
    """Returns the last line of a failed run's error; None if the run did not fail."""
    return next(reversed(_failure_lines(folder)), None)


def diverged(folder: AnyPath) -> bool:
    """Tells whether a run failed because its loss, gradient or state did not stay finite."""
    return _failure_lines(folder)[:1] == [NotFinite.__name__]


def _failure_lines(folder: AnyPath) -> list[str]:
    path = folder / FAILURE
    if not path.exists():
        return []
    text = path.read_bytes().decode("utf-8", errors="replace")
    return [line for line in text.split("\n") if line.strip()] or [f"{path} is empty"]


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


def check_comparison(config: ml_collections.ConfigDict) -> None:
    """Checks the fields of a config that compare runs. Raises UserError for an impossible one.

    A report needs them, after hours of training.
    """
    for field in (*COMPARED, *SHARED):
        if field not in config:
            wanted = COMPARED.get(field, "see docs/fields.md")
            raise UserError(f"the config lacks {field}: {wanted}")
    arms = _arms(config.arms)
    whole(0, LARGEST_SEED)("seed", config.seed)
    whole(1)("seeds", config.seeds)
    for arm, changes in dict(config.arms).items():
        count = whole(1)(f"seeds of arm {arm}", changes.get("seeds", config.seeds))
        whole(0, LARGEST_SEED)(f"the last seed of arm {arm}", config.seed + count - 1)
    check_choice(config.baseline, arms, "baseline")
    if not isinstance(config.panels, tuple | list) or not all(map(_is_panel, config.panels)):
        raise UserError(f"panels must be {COMPARED['panels']}, got {config.panels!r}")
    for title, field, _ in config.panels:
        if field != "arm" and not has_field(config, field):
            raise UserError(f"panel {title!r} shows {field!r}, which is no field of the config")


def _is_panel(panel: Any) -> bool:
    """Tells whether a value has the form of a panel; a preset may lack some of its arms."""
    match panel:
        case [str(), str(), [*arms]]:
            return all(isinstance(arm, str) for arm in arms)
    return False


def _arms(given: Any) -> list[str]:
    """Returns the names of the arms, which are also the names of folders."""
    try:
        pairs = [(name, changes) for name, changes in given]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(isinstance(changes, CHANGES) for _, changes in pairs):
        raise UserError(f"arms must be {COMPARED['arms']}, got {given!r}")
    names = [name for name, _ in pairs]
    for name, changes in pairs:
        possible = isinstance(name, str) and NAME.fullmatch(name) and name not in RESERVED
        if not possible or len(name.encode(errors="replace")) > LONGEST:
            raise UserError(
                f"{name!r} cannot be the name of an arm: it must be that of a folder, of at most "
                f"{LONGEST} bytes, without | and commas"
            )
        if fixed := sorted({"seed", "final_split"} & changes.keys()):
            raise UserError(f"arm {name} changes {fixed[0]}, which must be the same for all arms")
        if names.count(name) > 1:
            raise UserError(f"arms must have different names, got {name!r} twice")
    return names


def has_field(config: Any, dotted: str) -> bool:
    """Tells whether a config has a field, by its dotted name."""
    head, _, rest = dotted.partition(".")
    try:
        return head in config and (not rest or has_field(config[head], rest))
    except TypeError:  # not a group of fields
        return False


def final_split(result: Mapping[str, Any]) -> str:
    """Returns the split on which a finished run was evaluated: test, or validation."""
    return next((split for split in FINAL_SPLITS if split in result), FINAL_SPLITS[0])


def accuracy(result: Mapping[str, Any]) -> float:
    """Returns the accuracy of a finished run, in per cent."""
    return float(100 * result[final_split(result)]["accuracy"])


def environment() -> dict[str, Any]:
    """Returns the environment of this process."""
    import jax  # which reports do not need

    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": COMMIT,
        "devices": [device.device_kind for device in jax.devices()],
        "threads": threads() if jax.default_backend() == "cpu" else None,
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # installed in another way
        return None


def commit() -> str | None:
    """Returns the git commit of this code, with '+' if it was changed since; None without git.

    None too if the code is installed inside the repository of another project.
    """
    if not shutil.which("git"):
        return None
    git = ["git", "-C", str(Path(__file__).parents[1])]
    tracked = [*git, "ls-files", "--error-unmatch", "__init__.py"]
    if subprocess.run(tracked, capture_output=True, check=False).returncode:
        return None
    command = [*git, "describe", "--always", "--abbrev=12", "--dirty=+"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


COMMIT = commit()  # of the code that this process loads now: a later one is not what runs
