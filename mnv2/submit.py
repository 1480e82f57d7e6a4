"""Submits the runs of a config as jobs of a SLURM cluster.

    python -m mnv2.submit --config configs/v2_ablation.py:full --gpus 1
    python -m mnv2.submit --config configs/imagenet.py:timm --gpus 8 --cores 64

Does not wait for the jobs. Short runs share a job. A job that is preempted or
reaches its time limit saves its runs, is queued again and resumes. The last
job writes the report. The same command submits what is not finished. How far
the runs are: python -m mnv2.status WORKDIR
"""

import functools
from collections.abc import Sequence

from absl import app, flags

from mnv2.runtime.cli import one_line_errors
from mnv2.runtime.config_file import CONFIG, parse_flags, workdir_flag
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import in_bucket

flags.declare_key_flag("config")  # so that --help shows it
flags.declare_key_flag("workdir")
_ONLY = flags.DEFINE_list("only", [], "Arms or runs (arm/seed), separated by commas.")
_REPORT = flags.DEFINE_bool("report", True, "Write the report after the last job.")
# What each job asks for: the fields of `slurm.Resources`.
flags.DEFINE_string("partition", None, "The partition (default: SLURM's own).")
flags.DEFINE_string("account", None, "The account that pays.")
flags.DEFINE_string("qos", None, "The quality of service.")
flags.DEFINE_string("memory", None, "Memory per job, as 16G (default: the site's).")
flags.DEFINE_integer("cores", 4, "Cores per job.", lower_bound=1)
flags.DEFINE_integer("gpus", 0, "GPUs per job.", lower_bound=0)
flags.DEFINE_float("hours", 24.0, "Time limit, after which a job is queued again.")
flags.DEFINE_integer("jobs", None, "Jobs at the same time (default: all).", lower_bound=1)
flags.DEFINE_integer(
    "threads", None, "Threads of each run on a CPU (default: as the cores of a job allow).", 1
)
flags.DEFINE_integer(
    "runs_per_job", None, "Runs per job (default: several if they are short).", lower_bound=1
)


def main(argv: Sequence[str]) -> None:
    with one_line_errors():
        workdir = workdir_flag()
        if in_bucket(workdir):
            raise UserError("jobs need a --workdir in a file system that all nodes share")
        import jax

        from mnv2.sweeps import slurm
        from mnv2.sweeps.plan import with_arms
        from mnv2.sweeps.tuning import run_tuned

        jax.config.update("jax_platforms", "cpu")  # GPUs are for the runs
        given = flags.FLAGS.flag_values_dict()
        resources = slurm.Resources(**{name: given[name] for name in slurm.Resources._fields})
        config, submit = with_arms(CONFIG.value), functools.partial(slurm.submit, resources)
        if config.get("tuned"):
            if _ONLY.value:
                raise UserError("config.tuned tunes and compares all arms: leave out --only")
            run_tuned(config, workdir, execute=submit, reports=_REPORT.value)
        else:
            submit(config, workdir, *_ONLY.value, reports=_REPORT.value)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
