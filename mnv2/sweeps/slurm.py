"""Jobs of a SLURM cluster, each of which executes a fixed list of runs: see `mnv2.submit`."""

import dataclasses
import math
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mnv2.runtime.cli import one_line_errors
from mnv2.runtime.errors import UserError, number
from mnv2.runtime.interruption import EXIT_CODE
from mnv2.runtime.layout import SLURM
from mnv2.sweeps.launch import run_sweep
from mnv2.sweeps.plan import Run, claim, named, plan

SAVING_SECONDS = 90  # before its time limit at which a job stops by itself
# A job gets short runs until they have this many multiply-adds: ten minutes on four cores.
WORK = 5e12
MOST_JOBS = 1000  # of an array; SLURM's MaxArraySize is 1001 unless it was set


class Resources(NamedTuple):
    """What each job asks SLURM for; None: what the site gives by default.

    jobs          at the same time; None: all of them
    threads       with which a run computes on a CPU; None: as the cores of a job allow
    runs_per_job  None: several if they are short
    """

    cores: int
    gpus: int
    hours: float
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    memory: str | None = None
    jobs: int | None = None
    threads: int | None = None
    runs_per_job: int | None = None

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts it."""
        return max(1, round(60 * self.hours))


def submit(
    resources: Resources,
    config: ml_collections.ConfigDict,
    workdir: Path,
    *only: str,
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

    number(0, low_open=True)("--hours", resources.hours)
    runs = claim(config, workdir, only)
    waiting = [run for run in runs if not run.finished]
    if not waiting:
        print(f"all {len(runs)} runs in {workdir} are finished already")
        return
    groups = share_out(waiting, resources.runs_per_job)
    names = [[run.name for run in group] for group in groups]
    try:
        executor = submitit.SlurmExecutor(folder=workdir / SLURM)
        executor.update_parameters(**_parameters(resources, len(groups)))
        with executor.batch():
            jobs = [
                executor.submit(_Job(config, workdir.absolute(), these, only, resources, reports))
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


def share_out(runs: Sequence[Run], runs_per_job: int | None) -> list[list[Run]]:
    """Divides runs among at most MOST_JOBS jobs; the longest runs come first.

    Without `runs_per_job`, a job gets runs until they have WORK multiply-adds.
    """
    fewest = math.ceil(len(runs) / MOST_JOBS)  # runs per job
    if runs_per_job is not None and runs_per_job < fewest:
        raise UserError(
            f"--runs_per_job {runs_per_job} would make more than {MOST_JOBS} jobs of {len(runs)} "
            f"runs: give {fewest} or more"
        )
    groups: list[list[Run]] = []
    left = 0.0  # how much more the last job takes: multiply-adds, or runs
    for run in sorted(runs, key=lambda run: -run.work):
        if not groups or (left <= 0 and len(groups[-1]) >= fewest):
            groups.append([])
            left = WORK if runs_per_job is None else runs_per_job
        groups[-1].append(run)
        left -= run.work if runs_per_job is None else 1
    return groups


def _parameters(resources: Resources, jobs: int) -> dict[str, Any]:
    additional = {"requeue": True, "account": resources.account, "mem": resources.memory}
    parameters = {
        "job_name": "mnv2",
        "time": resources.minutes,
        "cpus_per_task": resources.cores,
        "array_parallelism": resources.jobs or jobs,
        "use_srun": False,  # one process per job, which gets its signals directly
        "additional_parameters": {name: x for name, x in additional.items() if x is not None},
        "partition": resources.partition,
        "qos": resources.qos,
        "gpus_per_node": resources.gpus or None,
    }
    return {name: value for name, value in parameters.items() if value is not None}


@dataclasses.dataclass
class _Job:
    """Some runs, as they are sent to a node. The last job that finishes one writes the report."""

    config: ml_collections.ConfigDict
    workdir: Path
    names: Sequence[str]
    only: Sequence[str]
    resources: Resources
    reports: bool

    def __call__(self) -> None:
        request = self.workdir / SLURM / f"{_job_id()}.pickle"
        request.write_bytes(
            pickle.dumps((self.config, self.workdir, self.names, self.resources.threads))
        )
        process = subprocess.Popen([sys.executable, "-m", "mnv2.sweeps.slurm", str(request)])
        # The job keeps its own clock. submitit lets SLURM send SIGUSR2 before the time limit, which
        # reaches only what srun started. SIGTERM means preemption or scancel.
        timed_out = []

        def near_the_limit(*_: Any) -> None:
            timed_out.append(True)
            process.send_signal(signal.SIGTERM)

        signal.signal(signal.SIGALRM, near_the_limit)
        signal.signal(signal.SIGUSR2, near_the_limit)
        signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
        signal.alarm(max(SAVING_SECONDS // 3, 60 * self.resources.minutes - SAVING_SECONDS))
        code = process.wait()
        signal.alarm(0)
        if code == EXIT_CODE:  # after a signal
            if timed_out:
                subprocess.run(["scontrol", "requeue", _job_id()], check=True)
            # SLURM queues a preempted job again only if SLURM itself ends it.
            signal.pause()
        if code:
            sys.exit(code)
        runs = named(plan(self.config, self.workdir), self.only)
        if self.reports and all(run.finished for run in runs):
            from mnv2.sweeps.report import write_report

            write_report(self.workdir)


def _job_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def main(request: str) -> None:
    """Executes the runs of a job: python -m mnv2.sweeps.slurm REQUEST"""
    with one_line_errors(resumes=True):
        config, workdir, names, threads = pickle.loads(Path(request).read_bytes())
        run_sweep(config, workdir, *names, threads=threads, reports=False)


if __name__ == "__main__":
    main(sys.argv[1])
