"""Executes several runs at the same time, in processes on this machine."""

import contextlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from mnv2.runtime.errors import UserError, check_positive
from mnv2.runtime.files import warn_once
from mnv2.runtime.interruption import Stopper
from mnv2.runtime.layout import LOG
from mnv2.runtime.terminal import StatusLine, format_seconds
from mnv2.sweeps import workdir as workdirs
from mnv2.sweeps.execute import outcome, raise_if_failed
from mnv2.sweeps.plan import Run
from mnv2.sweeps.report import write_report

GLANCE = 0.2  # seconds between looks at the processes


def run_in_processes(
    config: ml_collections.ConfigDict,
    workdir: Path,
    only: Sequence[str],
    parallel: int,
    command: Sequence[str],
    *,
    reports: bool = True,
) -> None:
    """Executes every run that is not finished in its own process, `parallel` at a time.

    The processes share this machine's cores and GPUs evenly. `command` executes the runs of the
    config in one process and takes `--only`. Its output goes to log.txt in the run's folder. Raises
    UserError at the end if any run failed. If a signal comes, raises Stopped after all processes
    have ended.
    """
    check_positive(parallel, "--parallel")
    runs = workdirs.claim(config, workdir, only)
    waiting = [one for one in runs if not one.finished]
    shares = _shares(parallel)
    print(f"{len(waiting)} of {len(runs)} runs to do, {parallel} at a time, {shares[0]} for each")
    stopper = Stopper()
    with stopper.listening(), stopper.deferred():
        failed = _Pool(command, shares, waiting, stopper).work()
    if reports and any(workdirs.load(workdir).results.values()):
        write_report(workdir)
    raise_if_failed(failed)


class _Share(NamedTuple):
    """The part of this machine that one of several processes may use."""

    cores: tuple[int, ...] | None  # None if processes cannot be bound to cores: all of them
    gpus: tuple[str, ...] | None  # None if there are no GPUs

    def __str__(self) -> str:
        gpus = "" if self.gpus is None else f" and GPU {','.join(self.gpus)}"
        if self.cores is None:
            return f"all cores{gpus}"
        return f"{len(self.cores)} core{'s' * (len(self.cores) > 1)}{gpus}"


def _shares(count: int) -> list[_Share]:
    """Divides the cores in contiguous blocks and deals out the GPUs.

    If there are fewer cores or GPUs than processes, several processes use the same one.
    """
    cores = sorted(os.sched_getaffinity(0)) if _can_bind() else None
    gpus = _gpus()

    def block(which: int) -> tuple[int, ...] | None:
        if cores is None:
            return None
        begin, end = which * len(cores) // count, (which + 1) * len(cores) // count
        return tuple(cores[begin : max(end, begin + 1)])

    def dealt(which: int) -> tuple[str, ...] | None:
        return tuple(gpus[which % len(gpus) :: count]) if gpus else None

    return [_Share(block(which), dealt(which)) for which in range(count)]


def _can_bind() -> bool:
    """Tells whether this operating system can bind a process to cores: Linux can, macOS cannot."""
    return hasattr(os, "sched_getaffinity") and hasattr(os, "sched_setaffinity")


def _gpus() -> list[str]:
    """Lists the GPUs in CUDA_VISIBLE_DEVICES, or all GPUs if it is not set."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    return sorted(path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*"))


class _Pool:
    """The processes of `run_in_processes`."""

    def __init__(
        self,
        command: Sequence[str],
        shares: Sequence[_Share],
        waiting: Sequence[Run],
        stopper: Stopper,
    ):
        self._command, self._shares, self._stopper = command, shares, stopper
        self._waiting = list(waiting)
        self._running: dict[int, tuple[Run, subprocess.Popen[bytes], float]] = {}
        self._line = StatusLine("running")

    def work(self) -> dict[str, str]:
        """Executes all runs; returns the names of those that failed, and the reasons."""
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
                    self._line.clear()
                    try:
                        line = outcome(label, _result_of(one), seconds)
                    except UserError as error:
                        failed[one.name] = str(error)
                        line = f"{label:28} failed: {error}"
                    print(f"{line}  {format_seconds(left)} left", flush=True)
                names = ", ".join(one.name for one, _, _ in self._running.values())
                self._line.say(f"{len(self._waiting)} waiting: {names}")
                time.sleep(GLANCE)
                self._stopper.check()
        except BaseException:
            self._stop()
            raise
        self._line.clear()
        return failed

    def _start_some(self) -> None:
        for which, share in enumerate(self._shares):
            if which not in self._running and self._waiting:
                one = self._waiting.pop(0)
                process = _start([*self._command, f"--only={one.name}"], one.folder / LOG, share)
                self._running[which] = one, process, time.perf_counter()

    def _ended(self) -> list[tuple[Run, float]]:
        ended = []
        for which, (one, process, began) in list(self._running.items()):
            if process.poll() is not None:
                ended.append((one, time.perf_counter() - began))
                del self._running[which]
        return ended

    def _stop(self) -> None:
        """Lets every process save its run, and waits for all of them."""
        self._line.clear()
        for _, process, _ in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for _, process, _ in self._running.values():
            process.wait()


def _result_of(one: Run) -> dict[str, Any]:
    """Reads the result of a run whose process has ended. Raises UserError if it failed."""
    if not one.finished:
        raise UserError(workdirs.failure_of(one.folder) or f"see {one.folder / LOG}")
    return workdirs.result_of(one)


def _start(command: Sequence[str], log: Path, share: _Share) -> subprocess.Popen[bytes]:
    """Starts a process that has its share of the cores from its first instruction on."""
    environment = dict(os.environ)
    if share.gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)
    log.parent.mkdir(parents=True, exist_ok=True)
    with _bound_to(share.cores), log.open("ab") as file:
        # In its own session, because otherwise Ctrl-C would reach it in addition to our signal.
        return subprocess.Popen(
            command, stdout=file, stderr=file, env=environment, start_new_session=True
        )


@contextlib.contextmanager
def _bound_to(cores: tuple[int, ...] | None) -> Iterator[None]:
    """Binds this thread, and the processes that it starts, to some cores."""
    if cores is None:
        yield
        return
    ours = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        warn_once(f"processes are not bound to cores: {error.strerror}")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, ours)


def this_command(arguments: Sequence[str]) -> list[str]:
    """Returns the command that executes runs in one process: this one without its launcher.

    It has Python's own options too, such as -X dev.
    """
    options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *options, "-m", "mnv2.main", *arguments]
    return [*command, "--launcher=none", "--noreport"]
