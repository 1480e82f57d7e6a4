"""Submits runs as jobs of a SLURM cluster."""

import math
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections

from mnv2.runtime.cli import hide_gpus_from_tensorflow, silence_libraries
from mnv2.runtime.errors import UserError, check_positive
from mnv2.runtime.files import AnyPath
from mnv2.runtime.interruption import Stopped
from mnv2.runtime.layout import SLURM
from mnv2.sweeps.local import run_here
from mnv2.sweeps.plan import Run, chosen, plan
from mnv2.sweeps.schedule import longest_first, multiply_adds
from mnv2.sweeps.workdir import claim

SAVING = 90  # seconds before its time limit at which a job stops by itself
# A job gets short runs until they have this many multiply-adds: ten minutes on four cores.
WORK = 5e12
MOST_JOBS = 1000  # of an array; SLURM's MaxArraySize is 1001 unless it was set


class Resources(NamedTuple):
    """What each job asks SLURM for.

    parallel      jobs at the same time; None: all of them
    threads       with which a run computes on a CPU; None: as the cores of a job allow
    runs_per_job  None: several if they are short
    """

    partition: str | None
    cores: int
    gpus: int
    hours: float
    parallel: int | None = None
    threads: int | None = None
    runs_per_job: int | None = None

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts it."""
        return max(1, round(60 * self.hours))


def submit(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str],
    wanted: Resources,
    *,
    reports: bool = True,
) -> None:
    """Submits the runs that are not finished as jobs of one array. Does not wait for the jobs.

    Short runs share a job. A job that is preempted or reaches its time limit saves its runs, is
    queued again and resumes. Raises UserError if there is no SLURM or if it refuses the jobs.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            'SLURM needs another package: pip install ".[slurm]" in a checkout of mnv2'
        ) from None

    check_positive(wanted.hours, "--hours")
    if not math.isfinite(wanted.hours):
        raise UserError(f"--hours must be a finite number, got {wanted.hours}")
    runs = claim(config, workdir, only)
    waiting = [one for one in runs if not one.finished]
    if not waiting:
        print(f"all {len(runs)} runs in {workdir} are finished already")
        return
    groups = share_out(waiting, multiply_adds(waiting), wanted.runs_per_job)
    names = [[one.name for one in group] for group in groups]
    try:
        executor = submitit.SlurmExecutor(folder=workdir / SLURM)
        executor.update_parameters(**_parameters(wanted, len(groups)))
        with executor.batch():
            jobs = [
                executor.submit(_Job(config, workdir.absolute(), these, only, wanted, reports))
                for these in names
            ]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM takes no jobs here: {error}") from error
    for these, job in zip(names, jobs, strict=True):
        print(f"job {job.job_id:12} {', '.join(these)}")
    print(
        f"output in {workdir / SLURM}; python -m mnv2.status {workdir} shows how far they are, "
        f"python -m mnv2.report {workdir} the results"
    )


def share_out(
    runs: Sequence[Run], work: Mapping[str, float], runs_per_job: int | None
) -> list[list[Run]]:
    """Divides runs among at most MOST_JOBS jobs; the longest runs come first.

    `work` has the multiply-adds of each run by its name. Without `runs_per_job`, a job gets runs
    until they have WORK multiply-adds.
    """
    fewest = math.ceil(len(runs) / MOST_JOBS)  # runs per job
    if runs_per_job is not None and runs_per_job < fewest:
        raise UserError(
            f"--runs_per_job {runs_per_job} would make more than {MOST_JOBS} jobs of {len(runs)} "
            f"runs: give {fewest} or more"
        )
    groups: list[list[Run]] = []
    left = 0.0  # how much more the last job takes: multiply-adds, or runs
    for one in longest_first(runs, work):
        if not groups or (left <= 0 and len(groups[-1]) >= fewest):
            groups.append([])
            left = WORK if runs_per_job is None else runs_per_job
        groups[-1].append(one)
        left -= work[one.name] if runs_per_job is None else 1
    return groups


def _parameters(wanted: Resources, jobs: int) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": "mnv2",
        "time": wanted.minutes,
        "cpus_per_task": wanted.cores,
        "array_parallelism": wanted.parallel or jobs,
        "use_srun": False,  # one process per job, which gets its signals directly
        "additional_parameters": {"requeue": True},
    }
    if wanted.partition:
        parameters["partition"] = wanted.partition
    if wanted.gpus:
        parameters["gpus_per_node"] = wanted.gpus
    return parameters


class _Job:
    """Some runs, as they are sent to a node. The last of `only` to finish writes the report."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: AnyPath,
        names: Sequence[str],
        only: Sequence[str],
        wanted: Resources,
        reports: bool = True,
    ):
        self.config, self.workdir, self.names, self.only = config, workdir, names, only
        self.wanted, self.reports = wanted, reports

    def __call__(self) -> None:
        silence_libraries()
        hide_gpus_from_tensorflow()
        # The job keeps its own clock. submitit lets SLURM send SIGUSR2 before the time limit, which
        # reaches only what srun started. SIGTERM means preemption or scancel.
        timed_out = []

        def near_the_limit(*_: Any) -> None:
            timed_out.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

        for number in (signal.SIGALRM, signal.SIGUSR2):
            signal.signal(number, near_the_limit)
        signal.alarm(max(SAVING // 3, 60 * self.wanted.minutes - SAVING))
        try:
            run_here(
                self.config,
                self.workdir,
                self.names,
                threads=self.wanted.threads,
                reports=False,
            )
        except Stopped as stopped:
            print(f"stopped by {stopped}", flush=True)
            if timed_out:
                subprocess.run(["scontrol", "requeue", _job_id()], check=True)
            # SLURM queues a preempted job again only if SLURM itself ends it.
            signal.pause()
        runs = chosen(plan(self.config, self.workdir), self.only)
        if self.reports and all(one.finished for one in runs):
            from mnv2.sweeps.report import write_report

            write_report(self.workdir)


def _job_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
