"""Many runs at once: processes on this machine, or jobs of a SLURM cluster."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mnv2 import report
from mnv2.runtime.errors import UserError, check_positive
from mnv2.runtime.interruption import Stopped, Stopper
from mnv2.runtime.throughput import Progress, format_seconds
from mnv2.sweeps import execute

LOG = "log.txt"
GLANCE = 0.2  # seconds between looks at the processes
SAVING = 90  # seconds before its time limit at which a job of SLURM's stops by itself


def local(
    config: ml_collections.ConfigDict,
    workdir: Path,
    only: Sequence[str],
    parallel: int,
    command: Sequence[str],
) -> None:
    """Does every run that is not finished in a process of its own, `parallel` at a time.

    They share this machine's cores and GPUs evenly. `command` does the runs of the config in one
    process, and takes `--only`. What it prints goes to log.txt in the run's folder. Raises
    UserError at the end if any failed, Stopped if a signal came, when all processes have ended.
    """
    check_positive(parallel, "--parallel")
    runs = execute.claim(config, workdir, only)
    waiting = [one for one in runs if not one.finished]
    shares = _shares(parallel)
    print(f"{len(waiting)} of {len(runs)} runs to do, {parallel} at a time, {shares[0]} for each")
    stopper = Stopper()
    with stopper.listening(), stopper.deferred():
        failed = _Pool(command, shares, waiting, stopper).work()
    if report.load(workdir).rows():
        report.write(workdir)
    execute.raise_if_failed(failed)


class _Share(NamedTuple):
    """What one process of several may use of this machine."""

    cores: tuple[int, ...]
    gpus: tuple[str, ...] | None  # None: there are none

    def __str__(self) -> str:
        gpus = "" if self.gpus is None else f" and GPU {','.join(self.gpus)}"
        return f"{len(self.cores)} core{'s' * (len(self.cores) > 1)}{gpus}"


def _shares(count: int) -> list[_Share]:
    """Cores in contiguous blocks, GPUs in turn; what there is too few of is used by several."""
    cores = sorted(os.sched_getaffinity(0))
    gpus = _gpus()

    def block(which: int) -> tuple[int, ...]:
        begin, end = which * len(cores) // count, (which + 1) * len(cores) // count
        return tuple(cores[begin : max(end, begin + 1)])

    def dealt(which: int) -> tuple[str, ...] | None:
        return tuple(gpus[which % len(gpus) :: count]) if gpus else None

    return [_Share(block(which), dealt(which)) for which in range(count)]


def _gpus() -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES leaves, or all."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


class _Pool:
    """The processes of `local`."""

    def __init__(
        self,
        command: Sequence[str],
        shares: Sequence[_Share],
        waiting: Sequence[execute.Run],
        stopper: Stopper,
    ):
        self._command, self._shares, self._stopper = command, shares, stopper
        self._waiting = list(waiting)
        self._running: dict[int, tuple[execute.Run, subprocess.Popen[bytes], float]] = {}
        self._progress = Progress("running", len(waiting), 1)

    def work(self) -> dict[str, str]:
        """Does all the runs; returns those that failed, and why."""
        failed: dict[str, str] = {}
        total, done = len(self._waiting), itertools.count(1)
        began = time.perf_counter()
        try:
            while self._waiting or self._running:
                self._start_some()
                for one, seconds in self._ended():
                    number = next(done)
                    left = (time.perf_counter() - began) / number * (total - number)
                    label = f"[{number}/{total}] {one.name}"
                    self._progress.clear()
                    if one.finished:
                        line = execute.outcome(label, execute.result(one), seconds)
                    else:
                        failed[one.name] = execute.last_words(one) or f"see {one.folder / LOG}"
                        line = f"{label:28} failed: {failed[one.name]}"
                    print(f"{line}  {format_seconds(left)} left", flush=True)
                names = ", ".join(one.name for one, _, _ in self._running.values())
                self._progress.say(f"{len(self._waiting)} waiting: {names}")
                time.sleep(GLANCE)
                self._stopper.check()
        except BaseException:
            self._stop()
            raise
        self._progress.clear()
        return failed

    def _start_some(self) -> None:
        for which, share in enumerate(self._shares):
            if which not in self._running and self._waiting:
                one = self._waiting.pop(0)
                process = _start([*self._command, f"--only={one.name}"], one.folder / LOG, share)
                self._running[which] = one, process, time.perf_counter()

    def _ended(self) -> list[tuple[execute.Run, float]]:
        ended = []
        for which, (one, process, began) in list(self._running.items()):
            if process.poll() is not None:
                ended.append((one, time.perf_counter() - began))
                del self._running[which]
        return ended

    def _stop(self) -> None:
        """Has every process save its run, and waits for it."""
        self._progress.clear()
        for _, process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for _, process, _ in self._running.values():
            process.wait()


def _start(command: Sequence[str], log: Path, share: _Share) -> subprocess.Popen[bytes]:
    """A process that has its share of the cores from its first instruction on."""
    environment = dict(os.environ)
    if share.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    log.parent.mkdir(parents=True, exist_ok=True)
    ours = os.sched_getaffinity(0)
    os.sched_setaffinity(0, share.cores)  # children inherit it
    try:
        with log.open("ab") as file:
            # In a session of its own, or Ctrl-C in the terminal would reach it beside our signal.
            return subprocess.Popen(
                command, stdout=file, stderr=file, env=environment, start_new_session=True
            )
    finally:
        os.sched_setaffinity(0, ours)


class Slurm(NamedTuple):
    """What each job asks SLURM for."""

    partition: str | None
    cores: int
    gpus: int
    hours: float
    parallel: int  # jobs at a time

    @property
    def minutes(self) -> int:
        """The time limit, as SLURM counts it."""
        return max(1, round(60 * self.hours))


def slurm(
    config: ml_collections.ConfigDict, workdir: Path, only: Sequence[str], wanted: Slurm
) -> None:
    """Submits every run that is not finished as a job of one array; does not wait for them.

    A job that is preempted, or comes to its time limit, saves its run, is queued again and goes on.
    Raises UserError where there is no SLURM, or it refuses.
    """
    import submitit

    check_positive(wanted.parallel, "--parallel")
    check_positive(wanted.hours, "--hours")
    runs = execute.claim(config, workdir, only)
    waiting = [one for one in runs if not one.finished]
    if not waiting:
        print(f"all {len(runs)} runs in {workdir} are finished already")
        return
    try:
        executor = submitit.SlurmExecutor(folder=workdir / "slurm")
        executor.update_parameters(**_parameters(wanted))
        with executor.batch():
            jobs = [
                executor.submit(_Job(config, workdir.absolute(), one.name, only, wanted.minutes))
                for one in waiting
            ]
    except (RuntimeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM takes no jobs here: {error}") from error
    for one, job in zip(waiting, jobs, strict=True):
        print(f"{one.name:28} job {job.job_id}")
    print(
        f"output in {workdir / 'slurm'}; python -m mnv2.status {workdir} says how far they are, "
        f"python -m mnv2.report {workdir} what is finished"
    )


def _parameters(wanted: Slurm) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "job_name": "mnv2",
        "time": wanted.minutes,
        "cpus_per_task": wanted.cores,
        "array_parallelism": wanted.parallel,
        "use_srun": False,  # one process a job, which then gets its signals without a step between
        "additional_parameters": {"requeue": True},
    }
    if wanted.partition:
        parameters["partition"] = wanted.partition
    if wanted.gpus:
        parameters["gpus_per_node"] = wanted.gpus
    return parameters


class _Job:
    """One run, as it is sent to a node; the last of those in `only` to end writes the report."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        name: str,
        only: Sequence[str],
        minutes: int,
    ):
        self.config, self.workdir, self.name, self.only = config, workdir, name, only
        self.minutes = minutes

    def __call__(self) -> None:
        # By its own clock: what submitit has SLURM send before the time limit, SIGUSR2, reaches
        # only what srun has started. SIGTERM is preemption, or scancel.
        timed_out = []

        def near_the_limit(*_: Any) -> None:
            timed_out.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

        for number in (signal.SIGALRM, signal.SIGUSR2):
            signal.signal(number, near_the_limit)
        signal.alarm(max(SAVING // 3, 60 * self.minutes - SAVING))
        try:
            execute.run(self.config, self.workdir, [self.name], reports=False)
        except Stopped as stopped:
            print(f"stopped by {stopped}", flush=True)
            if timed_out:
                subprocess.run(["scontrol", "requeue", _job_id()], check=True)
            # SLURM queues a preempted job again when it has ended it, not when it ends by itself.
            signal.pause()
        runs = execute.chosen(execute.plan(self.config, self.workdir), self.only)
        if all(one.finished for one in runs):
            report.write(self.workdir)


def _job_id() -> str:
    array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
    return f"{array}_{task}" if array else os.environ["SLURM_JOB_ID"]


def this_command(arguments: Sequence[str]) -> list[str]:
    """What does the runs of this command in one process: it with its flags, without a launcher."""
    return [sys.executable, "-m", "mnv2.main", *arguments, "--launcher=none", "--noreport"]
