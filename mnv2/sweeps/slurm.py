"""Submits runs as jobs of a SLURM cluster."""

import math
import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mnv2.runtime.cli import hide_gpus_from_tensorflow, silence_libraries
from mnv2.runtime.errors import UserError, check_positive
from mnv2.runtime.interruption import Stopped
from mnv2.runtime.layout import SLURM
from mnv2.sweeps.execute import run_sweep
from mnv2.sweeps.plan import chosen, plan
from mnv2.sweeps.report import write_report
from mnv2.sweeps.workdir import claim

SAVING = 90  # seconds before its time limit at which a job stops by itself


class Resources(NamedTuple):
    """What each job asks SLURM for."""

    partition: str | None
    cores: int
    gpus: int
    hours: float
    parallel: int  # jobs at the same time

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts it."""
        return max(1, round(60 * self.hours))


def submit(
    config: ml_collections.ConfigDict,
    workdir: Path,
    only: Sequence[str],
    wanted: Resources,
    *,
    reports: bool = True,
) -> None:
    """Submits every run that is not finished as a job of one array. Does not wait for the jobs.

    A job that is preempted or reaches its time limit saves its run, is queued again and resumes.
    Raises UserError if there is no SLURM or if it refuses the jobs.
    """
    import submitit

    check_positive(wanted.parallel, "--parallel")
    check_positive(wanted.hours, "--hours")
    if not math.isfinite(wanted.hours):
        raise UserError(f"--hours must be a finite number, got {wanted.hours}")
    runs = claim(config, workdir, only)
    waiting = [one for one in runs if not one.finished]
    if not waiting:
        print(f"all {len(runs)} runs in {workdir} are finished already")
        return
    try:
        executor = submitit.SlurmExecutor(folder=workdir / SLURM)
        executor.update_parameters(**_parameters(wanted))
        with executor.batch():
            jobs = [
                executor.submit(
                    _Job(config, workdir.absolute(), one.name, only, wanted.minutes, reports)
                )
                for one in waiting
            ]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM takes no jobs here: {error}") from error
    for one, job in zip(waiting, jobs, strict=True):
        print(f"{one.name:28} job {job.job_id}")
    print(
        f"output in {workdir / SLURM}; python -m mnv2.status {workdir} shows how far they are, "
        f"python -m mnv2.report {workdir} the results"
    )


def _parameters(wanted: Resources) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": "mnv2",
        "time": wanted.minutes,
        "cpus_per_task": wanted.cores,
        "array_parallelism": wanted.parallel,
        "use_srun": False,  # one process per job, which gets its signals directly
        "additional_parameters": {"requeue": True},
    }
    if wanted.partition:
        parameters["partition"] = wanted.partition
    if wanted.gpus:
        parameters["gpus_per_node"] = wanted.gpus
    return parameters


class _Job:
    """One run, as it is sent to a node. The last run of `only` to finish writes the report."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        name: str,
        only: Sequence[str],
        minutes: int,
        reports: bool = True,
    ):
        self.config, self.workdir, self.name, self.only = config, workdir, name, only
        self.minutes, self.reports = minutes, reports

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
        signal.alarm(max(SAVING // 3, 60 * self.minutes - SAVING))
        try:
            run_sweep(self.config, self.workdir, [self.name], reports=False)
        except Stopped as stopped:
            print(f"stopped by {stopped}", flush=True)
            if timed_out:
                subprocess.run(["scontrol", "requeue", _job_id()], check=True)
            # SLURM queues a preempted job again only if SLURM itself ends it.
            signal.pause()
        runs = chosen(plan(self.config, self.workdir), self.only)
        if self.reports and all(one.finished for one in runs):
            write_report(self.workdir)


def _job_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]
