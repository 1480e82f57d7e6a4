"""Trains the arms of a config and reports on them.

    python -m mnv2.main --config configs/v2_ablation.py       the ablations, on a laptop
    python -m mnv2.main --config configs/v2_ablation.py:full  as one would publish them
    python -m mnv2.main --config configs/v2_ablation.py --only linear,relu6
    python -m mnv2.main --config configs/v2_ablation.py --config.model.width 0.5 --workdir runs/w50

Many runs at once, on this machine or as jobs of a SLURM cluster:

    python -m mnv2.main --config configs/v2_ablation.py --launcher local --parallel 2
    python -m mnv2.main --config configs/v2_ablation.py --launcher slurm --partition gpu --gpus 1

One run over several machines: on each the same command with --distributed, where JAX knows the
cluster (SLURM, MPI, Kubernetes, TPU pods), or with

    --coordinator_address HOST:PORT --num_processes 2 --process_id 0      (on the other one: 1)

Any field of the config can be set on the command line. The same command again goes on where it
stopped and skips what is finished. Results: python -m mnv2.report WORKDIR, and
tensorboard --logdir WORKDIR.
"""

import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnv2.runtime.cli import fail, run
from mnv2.runtime.huge_pages import restart_with_huge_pages

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs and the report (default: runs/NAME-PRESET)."
)
_ONLY = flags.DEFINE_list(
    "only", [], "Arms or runs (arm/seed) to do, separated by commas (default: all)."
)
_REPORT = flags.DEFINE_bool("report", True, "Write the report when the runs are done.")
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "none",
    ("none", "local", "slurm"),
    "Where runs are done: here, one by one; or many.",
)
_PARALLEL = flags.DEFINE_integer("parallel", 2, "Launchers: runs at a time.", lower_bound=1)
_PARTITION = flags.DEFINE_string("partition", None, "SLURM: the partition (default: SLURM's own).")
_CORES = flags.DEFINE_integer("cores", 4, "SLURM: cores for each run.", lower_bound=1)
_GPUS = flags.DEFINE_integer("gpus", 0, "SLURM: GPUs for each run.", lower_bound=0)
_HOURS = flags.DEFINE_float("hours", 24.0, "SLURM: time for each run, until it is queued again.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the processes that JAX finds.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Join processes: where the first one listens, HOST:PORT."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Join processes: how many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Join processes: which this is, from 0.")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: see --help")
    if _CONFIG.value is None:
        fail("no --config given: try --config configs/v2_ablation.py, or --help")
    workdir = Path(
        _WORKDIR.value or _default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    )
    run(lambda: _do(workdir))


def _do(workdir: Path) -> None:
    """The runs, where the flags say."""
    import jax  # and TensorFlow, which --help need not wait for

    joins = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    several = _DISTRIBUTED.value or joins != (None, None, None)
    if _LAUNCHER.value == "none":
        from mnv2.runtime import processes
        from mnv2.sweeps import execute

        if several:
            processes.meet(*joins)
        with processes.together():
            execute.run(_CONFIG.value, workdir, _ONLY.value, reports=_REPORT.value)
        return
    if several:
        fail("a launcher starts processes of their own: leave out --distributed and its like")
    jax.config.update("jax_platforms", "cpu")  # GPUs are for the runs
    from mnv2.sweeps import local

    if _LAUNCHER.value == "local":
        command = local.this_command(sys.argv[1:])
        local.local(_CONFIG.value, workdir, _ONLY.value, _PARALLEL.value, command)
        return
    wanted = local.Slurm(_PARTITION.value, _CORES.value, _GPUS.value, _HOURS.value, _PARALLEL.value)
    local.slurm(_CONFIG.value, workdir, _ONLY.value, wanted)


def _default_workdir(config_file: str) -> Path:
    """configs/v2_ablation.py:full -> runs/v2_ablation-full"""
    path, _, preset = config_file.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, preset)))


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        getattr(_CONFIG.value, "arms", None)  # a config that failed to load says so when it is used
        return rest
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_explain(error))


def _explain(error: Exception) -> str:
    """What was wrong with the flags, without the traceback that ml_collections puts around it."""
    text = str(error)
    if match := re.search(r'Did you mean "(\S+)" instead of "(\S+)"', text):
        return f"unknown config field {match[2]!r}: did you mean {match[1]!r}?"
    if match := re.search(r"No such file or directory: '(.+)'", text):
        return f"no config file {match[1]}: try configs/v2_ablation.py"
    if "Traceback" in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    # Until runs listen for it: a KeyboardInterrupt would get lost while TensorFlow is imported.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    restart_with_huge_pages("mnv2.main")
    app.run(main, argv=sys.argv, flags_parser=_parse)
