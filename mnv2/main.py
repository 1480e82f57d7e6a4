"""Trains the arms of a config and reports on them.

    python -m mnv2.main --config configs/v2_ablation.py       the ablations, on a laptop
    python -m mnv2.main --config configs/v2_ablation.py:full  as one would publish them
    python -m mnv2.main --config configs/v2_ablation.py --only linear,relu6
    python -m mnv2.main --config configs/v2_ablation.py --config.model.width 0.5 --workdir runs/w50

Several runs at the same time, on this machine or as jobs of a SLURM cluster:

    python -m mnv2.main --config configs/v2_ablation.py --launcher local --parallel 2
    python -m mnv2.main --config configs/v2_ablation.py --launcher slurm --partition gpu --gpus 1

One run over several machines: start the same command on each. JAX finds the other machines by
itself with --distributed if it knows the cluster (SLURM, MPI, Kubernetes, TPU pods). Otherwise:

    --coordinator_address HOST:PORT --num_processes 2 --process_id 0      (on the second one: 1)

Every field of the config can be set on the command line. The same command resumes runs that were
stopped and skips runs that are finished. Results: python -m mnv2.report WORKDIR, and
tensorboard --logdir WORKDIR.
"""

import itertools
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnv2.runtime.cli import fail, hide_gpus_from_tensorflow, run
from mnv2.runtime.huge_pages import restart_with_huge_pages

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs and the report (default: runs/NAME-PRESET)."
)
_ONLY = flags.DEFINE_list(
    "only", [], "Arms or runs (arm/seed) to execute, separated by commas (default: all)."
)
_REPORT = flags.DEFINE_bool("report", True, "Write the report after the runs.")
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "none",
    ("none", "local", "slurm"),
    "none: one run after another, in this process. local: several processes on this machine. "
    "slurm: jobs of a cluster.",
)
_PARALLEL = flags.DEFINE_integer(
    "parallel", 2, "Launchers: the number of runs at the same time.", lower_bound=1
)
_PARTITION = flags.DEFINE_string("partition", None, "SLURM: the partition (default: SLURM's own).")
_CORES = flags.DEFINE_integer("cores", 4, "SLURM: cores per run.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "SLURM: GPUs per run.", lower_bound=0)
_HOURS = flags.DEFINE_float("hours", 24.0, "SLURM: time limit, after which a run is queued again.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other processes that JAX finds.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Join processes: HOST:PORT where the first one listens."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Join processes: their number.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Join processes: this one, from 0.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: see --help")
    if _CONFIG.value is None:
        fail("no --config given: try --config configs/v2_ablation.py, or --help")
    workdir = Path(
        _WORKDIR.value or _default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    )
    run(lambda: _train(workdir))


def _train(workdir: Path) -> None:
    """Executes the runs, in this process or by a launcher."""
    hide_gpus_from_tensorflow()
    import jax  # takes seconds, which --help does not wait for

    joins = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    several = _DISTRIBUTED.value or joins != (None, None, None)
    if _LAUNCHER.value == "none":
        from mnv2.runtime import processes
        from mnv2.sweeps.execute import run_sweep

        if several:
            processes.meet(*joins)
        with processes.together():
            run_sweep(_CONFIG.value, workdir, _ONLY.value, reports=_REPORT.value)
        return
    if several:
        fail("a launcher starts its own processes: leave out --distributed and the like")
    jax.config.update("jax_platforms", "cpu")  # GPUs are for the runs
    if _LAUNCHER.value == "local":
        from mnv2.sweeps import local

        command = local.this_command(sys.argv[1:])
        local.run_in_processes(_CONFIG.value, workdir, _ONLY.value, _PARALLEL.value, command)
        return
    from mnv2.sweeps import slurm

    wanted = slurm.Resources(
        _PARTITION.value, _CORES.value, _GPUS.value, _HOURS.value, _PARALLEL.value
    )
    slurm.submit(_CONFIG.value, workdir, _ONLY.value, wanted)


def _default_workdir(config_file: str) -> Path:
    """configs/v2_ablation.py:full -> runs/v2_ablation-full"""
    path, _, preset = config_file.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, preset)))


def _parse(argv: Sequence[str]) -> list[str]:
    _make_configs_importable(argv)
    try:
        rest = flags.FLAGS(argv)
        getattr(_CONFIG.value, "arms", None)  # a config that failed to load raises when it is used
        return rest
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_explain(error))


def _make_configs_importable(argv: Sequence[str]) -> None:
    """Lets a config file import its neighbours, as `configs.defaults`, from any folder."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    for flag, value in itertools.pairwise(words):
        if flag in ("--config", "-config"):
            sys.path.append(str(Path(value.partition(":")[0]).expanduser().absolute().parents[1]))


def _explain(error: Exception) -> str:
    """Says what is wrong with the flags, without the traceback that ml_collections adds."""
    text = str(error)
    if match := re.search(r'Did you mean "(\S+)" instead of "(\S+)"', text):
        return f"unknown config field {match[2]!r}: did you mean {match[1]!r}?"
    if match := re.search(r"No such file or directory: '(.+)'", text):
        return f"no config file {match[1]}: try configs/v2_ablation.py"
    if "Traceback" in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text


def command() -> None:
    # A KeyboardInterrupt would get lost while TensorFlow is imported; later the runs handle it.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    restart_with_huge_pages()
    app.run(main, argv=sys.argv, flags_parser=_parse)


if __name__ == "__main__":
    command()
