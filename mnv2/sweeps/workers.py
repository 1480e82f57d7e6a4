"""Executes the runs of a sweep in several worker processes on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import connection
from typing import IO, Any

import ml_collections

from mnv2.runtime import machine
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath
from mnv2.runtime.interruption import Stopper
from mnv2.sweeps import workdir as workdirs
from mnv2.sweeps.display import Display
from mnv2.sweeps.division import Division
from mnv2.sweeps.execute import finish, not_finished, record_failure
from mnv2.sweeps.plan import Outcome, Run
from mnv2.sweeps.schedule import Duration, Forecast, longest_first, multiply_adds
from mnv2.training.loop import TRAINING
from mnv2.training.progress import Progress

GLANCE = 0.2  # seconds between looks at the workers
# What a worker certainly does not exceed: bytes, and bytes per multiply-add of a training batch.
# The ablation's widest network takes 3.6 GiB; by this it would take 4.0.
AT_MOST, AT_MOST_PER_MULTIPLY_ADD = 2 * 2**30, 1.0
MARGIN = 1.25  # a worker may come to need this many times the memory that it has in training
# Seconds until a run that another process held is tried once more: a worker whose parent was killed
# takes that long to save its run.
LATER = 5.0
PATIENCE = 20.0  # seconds that a worker which has nothing left to do may take to end
WORKER = (sys.executable, "-m", "mnv2.sweeps.worker")


def run_in_workers(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str],
    division: Division,
    *,
    reports: bool = True,
    command: Sequence[str] = WORKER,
) -> None:
    """Executes every run that is not finished in one of several workers; writes the report.

    A worker that dies is replaced once; its run is resumed by whichever worker is free. A run
    during which two workers died has failed. `command` starts a worker.

    Raises UserError at the end if any run failed. If a signal comes, raises Stopped after all
    workers have saved their runs and ended.
    """
    runs = workdirs.claim(config, workdir, only)
    waiting = not_finished(runs, workdir)
    count = min(division.workers, len(waiting))
    failed: dict[str, str] = {}
    if count:
        print(f"{count} worker{'s' * (count > 1)}, {division.reason}", flush=True)
        known = workdirs.load(workdir).results
        stopper = Stopper()
        with (
            stopper.listening(),
            stopper.deferred(),
            Display(runs, waiting, known, workers=count) as display,
        ):
            pool = _Pool(waiting, division, display, stopper, command)
            failed = pool.work(count)
    finish(workdir, failed, reports=reports)


class _Worker:
    """One worker process, and the run that it executes."""

    def __init__(self, number: int, division: Division, command: Sequence[str], display: Display):
        ours, theirs = socket.socketpair()
        options = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        self.number, self.replaced = number, False
        self.process = subprocess.Popen(
            [command[0], *options, *command[1:], str(theirs.fileno()), str(os.getpid())],
            env={**os.environ, **division.environment(number)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # otherwise Ctrl-C would reach it in addition to our signal
        )
        theirs.close()
        self.connection = connection.Connection(ours.detach())
        self.run: Run | None = None
        self.began = self.trained_since = 0.0
        self.since: tuple[float, float] | None = None  # see Forecast.running; from the first report
        # What a worker prints are warnings and errors; several print the same ones.
        assert self.process.stdout is not None
        self._reader = threading.Thread(
            target=_print_all, args=(self.process.stdout, display), daemon=True
        )
        self._reader.start()

    def start(self, one: Run) -> None:
        """Lets the worker execute a run. A worker that has died is noticed later."""
        self.run, self.began, self.trained_since = one, time.perf_counter(), 0.0
        self.since = None
        with contextlib.suppress(OSError):
            self.connection.send(one)

    def end(self) -> None:
        """Lets the worker end when it has done its run."""
        with contextlib.suppress(OSError):
            self.connection.send(None)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def wait(self, seconds: float | None = None) -> int | None:
        """Waits until the process has ended and all that it printed is shown; returns its code."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
            self._reader.join(GLANCE)
            self.connection.close()
        return self.process.returncode


def _print_all(lines: IO[bytes], display: Display) -> None:
    for line in lines:
        if text := line.decode(errors="replace").rstrip():
            display.say(text, once=True)


class _Pool:
    """The workers of `run_in_workers`, and what they have left to do."""

    def __init__(
        self,
        waiting: Sequence[Run],
        division: Division,
        display: Display,
        stopper: Stopper,
        command: Sequence[str],
    ):
        self._waiting = list(waiting)
        self._later: list[tuple[float, Run]] = []  # held by others: when to try again
        self._tried: set[str] = set()  # the names of runs that were held
        self._division, self._command = division, command
        self._display, self._stopper = display, stopper
        self._workers: list[_Worker] = []
        self._failed: dict[str, str] = {}
        self._deaths: Counter[str] = Counter()
        self._forecast = Forecast({})
        # One run at a time until it has shown how much memory it takes, unless there is plenty.
        self._most = 1 if division.measures_memory else division.workers

    def work(self, count: int) -> dict[str, str]:
        """Executes all runs; returns the names of those that failed, and the reasons."""
        with self._ending():
            self._workers = [self._new(number) for number in range(count)]
            # The workers take longer to start than this takes.
            work = multiply_adds(self._waiting, self._stopper.check)
            self._waiting = longest_first(self._waiting, work)
            self._forecast = Forecast(work)
            self._estimate(work)
            while self._waiting or self._later or self._busy():
                self._stopper.check()
                self._deal()
                self._listen()
                self._look_ahead()
        return self._failed

    def _new(self, number: int) -> _Worker:
        return _Worker(number, self._division, self._command, self._display)

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.run]

    def _deal(self) -> None:
        """Gives the longest runs that wait to workers that are free."""
        if not self._workers:
            raise UserError(
                "all workers died: see the lines above; the same command resumes, and --parallel 1 "
                "executes the runs in one process"
            )
        if not self._waiting and self._later and self._later[0][0] < time.perf_counter():
            self._waiting.append(self._later.pop(0)[1])
        for worker in self._workers:
            if self._waiting and not worker.run and len(self._busy()) < self._most:
                worker.start(one := self._waiting.pop(0))
                self._display.started(worker.number, one)

    def _listen(self) -> None:
        """Hears what the workers say until GLANCE has passed, or one of them has said something."""
        speaking = connection.wait([worker.connection for worker in self._workers], GLANCE)
        for worker in [one for one in self._workers if one.connection in speaking]:
            if worker not in self._workers:  # it was dismissed for what another one said
                continue
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._lost(worker)
            else:
                self._heard(worker, message)

    def _heard(self, worker: _Worker, message: Any) -> None:
        one = worker.run
        assert one is not None
        if not isinstance(message, Outcome):
            self._display.now(worker.number, message)
            spent = time.perf_counter() - worker.began
            if message == TRAINING:
                worker.trained_since = spent
                self._measure(worker)
            elif isinstance(message, Progress):
                done = message.step / message.steps
                if worker.since is None:
                    resumed = message.step > one.settings.log_every
                    worker.since = (spent, done) if resumed else (worker.trained_since, 0.0)
                self._forecast.running(
                    one.name, spent, done, worker.since, before=worker.trained_since
                )
            return
        worker.run = None
        if message.holder is not None and one.name not in self._tried:
            self._tried.add(one.name)
            self._later.append((time.perf_counter() + LATER, one))
            self._display.idle(worker.number)
            return
        if message.failure is not None:
            self._failed[one.name] = message.failure
        elif message.result is not None:
            self._forecast.finished(one.name, _duration(worker, message))
        self._look_ahead()
        self._display.ended(worker.number, message)

    def _look_ahead(self) -> None:
        """Tells the display how long the sweep still takes."""
        now = time.perf_counter()
        running = {worker.run.name: now - worker.began for worker in self._workers if worker.run}
        names = [one.name for one in (*self._waiting, *(one for _, one in self._later))]
        self._display.left = self._forecast.left(running, names, len(self._workers))

    def _estimate(self, work: Mapping[str, float]) -> None:
        """Lets all workers work at once if the memory has room for them beyond doubt."""
        largest = max(work[one.name] / one.steps for one in self._waiting)
        needed = AT_MOST + AT_MOST_PER_MULTIPLY_ADD * largest
        if self._division.measures_memory and len(self._workers) * needed < machine.free_memory():
            self._most = len(self._workers)

    def _measure(self, worker: _Worker) -> None:
        """Lets as many workers work as have room, from the memory of the first one that trains."""
        if not self._division.measures_memory or self._most > 1:
            return
        needed = MARGIN * machine.memory_of(worker.process.pid)
        free, self._most = float(machine.free_memory()), 1
        for other in [one for one in self._workers if one is not worker]:
            free -= max(0, needed - machine.memory_of(other.process.pid))
            if free < 0:
                break
            self._most += 1
        wanted = len(self._workers)
        if self._most < wanted:
            self._display.say(
                f"memory has room for {self._most} of {wanted} workers: one takes "
                f"{needed / 2**30:.1f} GiB; --parallel {wanted} starts all"
            )
            for other in [one for one in self._workers if not one.run][self._most - wanted :]:
                self._dismiss(other)

    def _dismiss(self, worker: _Worker) -> None:
        worker.end()
        self._workers.remove(worker)
        self._display.idle(worker.number)
        worker.wait(PATIENCE)

    def _lost(self, worker: _Worker) -> None:
        """Gives the run of a worker that has died to another one, and replaces the worker once."""
        code = worker.wait(PATIENCE)
        self._workers.remove(worker)
        self._display.idle(worker.number)
        how = _describe(code)
        if one := worker.run:
            self._deaths[one.name] += 1
            if self._deaths[one.name] > 1:
                message = f"its worker {how}, for the second time"
                self._failed[one.name] = message
                record_failure(one.folder, UserError(message))
                self._display.say(f"{one.name} failed: {message}")
            else:
                self._waiting.insert(0, one)
                self._display.say(f"the worker of {one.name} {how}; the run is resumed")
        else:
            self._display.say(f"a worker {how}")
        if not worker.replaced:
            replacement = self._new(worker.number)
            replacement.replaced = True
            self._workers.append(replacement)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Ends the workers, however the context ends: they save their runs, except if killed."""
        try:
            yield
            for worker in self._workers:
                worker.end()
        except KeyboardInterrupt:
            self._end_all(signal.SIGKILL)
            raise
        except BaseException:
            self._display.say("stopping: each worker saves its run")
            try:
                self._end_all(signal.SIGTERM)
            except KeyboardInterrupt:  # a second Ctrl-C
                self._end_all(signal.SIGKILL)
                raise
            raise
        for worker in self._workers:
            if worker.wait(PATIENCE) is None:
                worker.signal(signal.SIGKILL)

    def _end_all(self, number: int) -> None:
        for worker in self._workers:
            worker.signal(number)
            worker.end()  # if it is idle
        for worker in self._workers:
            worker.wait()


def _duration(worker: _Worker, outcome: Outcome) -> Duration:
    """Returns how long a whole run takes, a part of which may be of an earlier command."""
    assert outcome.result is not None
    training = outcome.result["train_seconds"]
    here = training * (1 - worker.since[1]) if worker.since else 0.0
    here = min(here, outcome.seconds - worker.trained_since)
    return Duration(training, outcome.seconds - here, worker.trained_since)


def _describe(code: int | None) -> str:
    """Says how a worker ended: was killed (SIGKILL), or ended with exit code 1."""
    if code is None:
        return "does not answer"
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
    return f"was killed ({signal.Signals(-code).name}{memory})"
