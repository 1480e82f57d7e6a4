"""Trains the arms of a config and reports on them.

    python -m mnv2.main --config configs/v2_ablation.py       on a laptop
    python -m mnv2.main --config configs/v2_ablation.py:full  for publishing
    python -m mnv2.main --config configs/v2_ablation.py:tuned at the best rates
    python -m mnv2.main --config configs/v2_ablation.py --only linear,relu6
    python -m mnv2.main --config ... --config.model.width 0.5 --workdir runs/w50
    python -m mnv2.main --config configs/imagenet.py:timm --show seen.png  look

Several runs are executed at the same time, one per core, GPU or TPU chip;
--parallel says how many. For the jobs of a SLURM cluster: python -m
mnv2.submit.

One run over several machines: start the same command on each. JAX finds the
other machines by itself with --distributed if it knows the cluster (SLURM,
MPI, Kubernetes, TPU pods). Otherwise:

    --coordinator_address HOST:PORT --num_processes 2 --process_id 0 (then 1)

Every field of the config can be set on the command line: docs/fields.md. A
text with | stands in quotes there: --config.data.train
"pad_crop(2)|flip|rand_augment(2, 9)". The same command resumes runs that were
stopped and skips runs that are finished. Results: python -m mnv2.report
WORKDIR, and tensorboard --logdir WORKDIR.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from mnv2.runtime.cli import one_line_errors
from mnv2.runtime.config_file import CONFIG, parse_flags, workdir_flag
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import (
    PICTURES,
    AnyPath,
    check_can_be_written,
    check_file,
    given_folder,
    in_bucket,
)
from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.plan import first_settings, with_arms
from mnv2.sweeps.tuning import run_tuned

flags.declare_key_flag("config")  # so that --help shows it
flags.declare_key_flag("workdir")
_ONLY = flags.DEFINE_list(
    "only", [], "Arms or runs (arm/seed) to execute, separated by commas (default: all)."
)
_PARALLEL = flags.DEFINE_integer(
    "parallel",
    None,
    "The number of runs at the same time (default: one per core, GPU or chip, if memory permits). "
    "1: one after another, each with all cores or devices.",
    lower_bound=1,
)
_THREADS = flags.DEFINE_integer(
    "threads",
    None,
    "The number of threads with which each run computes on a CPU (default: the cores, divided "
    "among the runs of the config, at least 1).",
    lower_bound=1,
)
_REPORT = flags.DEFINE_bool("report", True, "Write the report after the runs.")
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a trace of ten steps of the first run: see docs/accelerators.md."
)
_SHOW = flags.DEFINE_string(
    "show", None, "Draw what the first arm sees of some pictures to this file, and train nothing."
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes that JAX finds.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Join processes: HOST:PORT where the first one listens."
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "Join processes: their number.", lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Join processes: this one, from 0.", lower_bound=0
)


def main(argv: Sequence[str]) -> None:
    with one_line_errors(resumes=True):
        config, only = CONFIG.value, [name.strip() for name in _ONLY.value]
        if not all(only) or (flags.FLAGS["only"].present and not only):
            raise UserError("--only has an empty name: give arms or runs, such as linear,relu6/0")
        if _SHOW.value is not None:
            return _show(Path(_SHOW.value), only)
        workdir, parallel, meet, profile = workdir_flag(), _PARALLEL.value, _meeting(), _profile()
        options: dict[str, Any] = {"threads": _THREADS.value, "reports": _REPORT.value}
        if parallel is not None and parallel > 1 and (meet or profile):
            raise UserError("--parallel is for one machine, and runs without --profile")
        if not config.get("tuned"):
            more = {"parallel": parallel, "meet": meet, "profile": profile}
            return run_sweep(config, workdir, *only, **options, **more)
        if only or meet or profile:
            raise UserError(
                "config.tuned tunes and compares all arms on one machine: leave out --only, "
                "--profile, --distributed and the like"
            )
        return run_tuned(with_arms(config), workdir, parallel=parallel, **options)


def _show(path: Path, only: Sequence[str]) -> None:
    """Draws what a run of the config sees. Raises UserError if the file cannot be written."""
    check_file(path, PICTURES, "--show")
    from mnv2.training.seen import draw_seen  # imports JAX and TensorFlow

    draw_seen(first_settings(with_arms(CONFIG.value), only), path)
    print(f"what training and evaluation see: {path}")


def _profile() -> AnyPath | None:
    """Returns the folder for a trace. Raises UserError if it can be none."""
    if _PROFILE.value is None:
        return None
    folder = given_folder(_PROFILE.value, "--profile")
    if in_bucket(folder):
        raise UserError("--profile must be a local folder")
    check_can_be_written(folder, "--profile")
    return folder


def _meeting() -> Callable[[], None] | None:
    """Returns what joins this process to the others of a run; None if it is the only one."""
    address, count, which = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if not _DISTRIBUTED.value and (address, count, which) == (None, None, None):
        return None
    if not _DISTRIBUTED.value and None in (address, count, which):
        raise UserError(
            "to join processes, give --coordinator_address, --num_processes, --process_id, all "
            "three; or --distributed if JAX knows the cluster"
        )
    if address is not None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise UserError(f"--coordinator_address must be HOST:PORT, got {address!r}")
    if count is not None and which is not None and which >= count:
        raise UserError(f"--process_id must be 0 to {count - 1}, got {which}")

    def meet() -> None:
        from mnv2.runtime import processes  # imports JAX

        processes.meet(address, count, which)

    return meet


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
