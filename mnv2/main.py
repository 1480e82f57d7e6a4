"""Trains the arms of a config and reports on them.

    python -m mnv2.main --config configs/v2_ablation.py       the ablations, on a laptop
    python -m mnv2.main --config configs/v2_ablation.py:full  as one would publish them
    python -m mnv2.main --config configs/v2_ablation.py:tuned each arm at its best learning rate
    python -m mnv2.main --config configs/v2_ablation.py --only linear,relu6
    python -m mnv2.main --config configs/v2_ablation.py --config.model.width 0.5 --workdir runs/w50
    python -m mnv2.main --config configs/imagenet.py:timm --show seen.png      look, before training

Several runs are executed at the same time, one per core or GPU. How many, or as jobs of a SLURM
cluster:

    python -m mnv2.main --config configs/v2_ablation.py --parallel 1
    python -m mnv2.main --config configs/v2_ablation.py --launcher slurm --partition gpu --gpus 1

One run over several machines: start the same command on each. JAX finds the other machines by
itself with --distributed if it knows the cluster (SLURM, MPI, Kubernetes, TPU pods). Otherwise:

    --coordinator_address HOST:PORT --num_processes 2 --process_id 0      (on the second one: 1)

Every field of the config can be set on the command line. The same command resumes runs that were
stopped and skips runs that are finished. Results: python -m mnv2.report WORKDIR, and
tensorboard --logdir WORKDIR.
"""

import functools
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from mnv2.runtime.bad_flags import explanation
from mnv2.runtime.cli import fail, hide_gpus_from_tensorflow, run, silence_libraries
from mnv2.runtime.config_file import check_config, prepared
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import (
    PICTURES,
    AnyPath,
    as_path,
    check_can_be_written,
    check_file,
    given_folder,
    in_bucket,
)
from mnv2.runtime.huge_pages import restart_with_huge_pages

if TYPE_CHECKING:
    from mnv2.sweeps.tuned import Execute  # imports JAX

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the runs and the report, or gs://BUCKET/FOLDER (default: runs/NAME-PRESET).",
)
_ONLY = flags.DEFINE_list(
    "only", [], "Arms or runs (arm/seed) to execute, separated by commas (default: all)."
)
_PROFILE = flags.DEFINE_string(
    "profile", None, "Folder for a trace of ten steps of the first run: see docs/accelerators.md."
)
_SHOW = flags.DEFINE_string(
    "show", None, "Draw what the first arm sees of some pictures to this file, and train nothing."
)
_REPORT = flags.DEFINE_bool("report", True, "Write the report after the runs.")
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "none",
    ("none", "slurm"),
    "none: this machine executes the runs. slurm: jobs of a cluster.",
)
_PARALLEL = flags.DEFINE_string(
    "parallel",
    "auto",
    "The number of runs at the same time. auto: one per core or GPU, if memory permits; with "
    "SLURM, all jobs. 1: one after another, each with all cores or GPUs.",
)
_THREADS = flags.DEFINE_integer(
    "threads",
    None,
    "The number of threads with which each run computes on a CPU (default: the cores, divided "
    "among the runs of the config, at least 1).",
    lower_bound=1,
)
_DEVICES_PER_RUN = flags.DEFINE_integer(
    "devices_per_run",
    None,
    "The number of devices of each run; this process then executes as many runs at the same time "
    "as it has devices for. For small networks on a TPU host.",
    lower_bound=1,
)
_RUNS_PER_DEVICE = flags.DEFINE_integer(
    "runs_per_device",
    1,
    "The number of runs that are trained as one program, where they differ only in seed and "
    "learning rate. For small networks on a GPU.",
    lower_bound=1,
)
_PARTITION = flags.DEFINE_string("partition", None, "SLURM: the partition (default: SLURM's own).")
_CORES = flags.DEFINE_integer("cores", 4, "SLURM: cores per job.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "SLURM: GPUs per job.", lower_bound=0)
_RUNS_PER_JOB = flags.DEFINE_integer(
    "runs_per_job", None, "SLURM: runs per job (default: several if they are short).", lower_bound=1
)
_HOURS = flags.DEFINE_float("hours", 24.0, "SLURM: time limit, after which a job is queued again.")
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
OF_SLURM = ("partition", "cores", "gpus", "hours", "runs_per_job")  # flags


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        before = sys.argv[sys.argv.index(argv[1]) - 1] if argv[1] in sys.argv else ""
        if before.startswith("--config.") and "=" not in before:  # a field that is true or false
            fail(f"write {before}={argv[1]}, with an equals sign")
        fail(f"unexpected argument {argv[1]!r}: see --help")
    if _CONFIG.value is None:
        fail("no --config given: try --config configs/v2_ablation.py, or --help")
    run(_train, resumes=True)


def _train() -> None:
    """Executes the runs, in this process or by a launcher."""
    if _SHOW.value is not None:
        _show(Path(_SHOW.value))
        return
    # Before TensorFlow and JAX are imported, which takes seconds.
    config, workdir, only, joins = _CONFIG.value, _workdir(), _only(), _joins()
    profile, parallel = _profile(), _parallel()
    if flags.FLAGS["launcher"].using_default_value:
        for name in OF_SLURM:
            if flags.FLAGS[name].present:
                fail(f"--{name} is for SLURM: add --launcher slurm")
    if _PROFILE.value is not None and _LAUNCHER.value != "none":
        raise UserError("--profile is for runs in this process: leave out --launcher")
    if in_bucket(workdir) and _LAUNCHER.value != "none":
        raise UserError(
            f"--launcher {_LAUNCHER.value} needs a folder that its processes can append to: give a "
            "local --workdir, or leave out --launcher"
        )
    _check_lanes()
    tuned = bool(config.get("tuned"))
    if tuned and (only or joins or profile):
        raise UserError(
            "config.tuned tunes and compares all arms, in one process or by a launcher: leave out "
            "--only, --profile, --distributed and the like"
        )
    hide_gpus_from_tensorflow()
    from mnv2.sweeps.plan import with_arms

    config = with_arms(config)
    if _LAUNCHER.value == "none":
        execute = _executed_here(profile, parallel, joins)
    else:
        execute = _submitted(parallel)
    if tuned:
        from mnv2.sweeps.tuned import run_tuned

        run_tuned(config, workdir, execute, reports=_REPORT.value)
    else:
        execute(config, workdir, only, _REPORT.value)


def _executed_here(
    profile: AnyPath | None,
    parallel: int | None,
    joins: tuple[str | None, int | None, int | None] | None,
) -> "Execute":
    """Returns the function that executes the runs of a config on this machine."""
    from mnv2.runtime import processes
    from mnv2.sweeps.lanes import Lanes
    from mnv2.sweeps.local import run_here

    lanes = Lanes(_DEVICES_PER_RUN.value, _RUNS_PER_DEVICE.value)

    def execute(config: ConfigDict, workdir: AnyPath, only: Sequence[str], reports: bool) -> None:
        with processes.together():
            run_here(
                config,
                workdir,
                only,
                parallel=1 if joins or profile or lanes.several else parallel,
                threads=_THREADS.value,
                meet=None if joins is None else functools.partial(processes.meet, *joins),
                reports=reports,
                profile=profile,
                lanes=lanes,
            )

    return execute


def _submitted(parallel: int | None) -> "Execute":
    """Returns the function that submits the runs of a config as jobs."""
    import jax

    from mnv2.sweeps import slurm

    jax.config.update("jax_platforms", "cpu")  # GPUs are for the runs
    wanted = slurm.Resources(
        partition=_PARTITION.value,
        cores=_CORES.value,
        gpus=_GPUS.value,
        hours=_HOURS.value,
        parallel=parallel,
        threads=_THREADS.value,
        runs_per_job=_RUNS_PER_JOB.value,
    )

    def execute(config: ConfigDict, workdir: AnyPath, only: Sequence[str], reports: bool) -> None:
        slurm.submit(config, workdir, only, wanted, reports=reports)

    return execute


def _show(path: Path) -> None:
    """Draws what a run of the config sees. Raises UserError if the file cannot be written."""
    check_file(path, PICTURES, "--show")
    only = _only()
    hide_gpus_from_tensorflow()
    from mnv2.sweeps.plan import first_settings, with_arms
    from mnv2.training.seen import draw_seen

    draw_seen(first_settings(with_arms(_CONFIG.value), only), path)
    print(f"what training and evaluation see: {path}")


def _parallel() -> int | None:
    """Returns the number of runs at the same time; None if it is to be chosen."""
    given = _PARALLEL.value
    if given == "auto":
        return None
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"--parallel must be auto or a whole number of 1 or more, got {given!r}")
    several = int(given) > 1
    if several and _PROFILE.value is not None:
        raise UserError("--profile is for runs in this process: leave out --parallel")
    if several and (_DISTRIBUTED.value or _COORDINATOR.value is not None):
        raise UserError(
            "--parallel is for one machine: processes that join execute one run after another"
        )
    return int(given)


def _check_lanes() -> None:
    """Raises UserError if runs that share this process are combined with something else."""
    for name in ("devices_per_run", "runs_per_device"):
        if not flags.FLAGS[name].present:
            continue
        if _LAUNCHER.value != "none":
            raise UserError(f"--{name} is for this machine: leave out --launcher")
        if (_parallel() or 1) > 1:
            raise UserError(f"--{name} keeps all runs in one process: leave out --parallel")
        if _PROFILE.value is not None:
            raise UserError(f"--profile is for one run at a time: leave out --{name}")
        if _joins() is not None:
            raise UserError(f"--{name} is for one process: leave out --distributed and the like")


def _workdir() -> AnyPath:
    """Returns the folder of the runs. Raises UserError if it can be none."""
    if _WORKDIR.value is None:
        folder = as_path(_default_workdir(config_flags.get_config_filename(flags.FLAGS["config"])))
    else:
        folder = given_folder(_WORKDIR.value, "--workdir")
    check_can_be_written(folder, "--workdir")
    return folder


def _profile() -> AnyPath | None:
    """Returns the folder for a trace. Raises UserError if it can be none."""
    if _PROFILE.value is None:
        return None
    folder = given_folder(_PROFILE.value, "--profile")
    if in_bucket(folder):
        raise UserError("--profile must be a local folder")
    check_can_be_written(folder, "--profile")
    return folder


def _only() -> list[str]:
    """Returns the names that --only gives. Raises UserError if one is empty."""
    names = [name.strip() for name in _ONLY.value]
    if not all(names) or (flags.FLAGS["only"].present and not names):
        raise UserError("--only has an empty name: give arms or runs, such as linear,relu6/0")
    return names


def _joins() -> tuple[str | None, int | None, int | None] | None:
    """Returns how to join other processes; None if this is the only one."""
    joins = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    if not _DISTRIBUTED.value and joins == (None, None, None):
        return None
    if _LAUNCHER.value != "none":
        raise UserError("a launcher starts its own processes: leave out --distributed and the like")
    address, count, which = joins
    if not _DISTRIBUTED.value and None in joins:
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
    return joins


def _default_workdir(config_file: str) -> Path:
    """configs/v2_ablation.py:full -> runs/v2_ablation-full"""
    path, _, preset = config_file.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, preset)))


def _parse(argv: Sequence[str]) -> list[str]:
    silence_libraries()
    try:
        argv, config_file = prepared(argv)
        try:
            rest = flags.FLAGS(argv)
            if config_file is not None:
                check_config(_CONFIG.value, config_file)
        except UserError:
            raise
        except Exception as error:  # a config file is a program, which may raise anything
            raise UserError(explanation(error, flags.FLAGS, config_file)) from error
    except UserError as error:
        fail(str(error))
    return rest


def command() -> None:
    # A KeyboardInterrupt would get lost while TensorFlow is imported; later the runs handle it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    restart_with_huge_pages()
    app.run(main, argv=sys.argv, flags_parser=_parse)


if __name__ == "__main__":
    command()
