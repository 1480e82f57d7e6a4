"""What a copy of the command does: plans the runs of a sweep, and executes one after another."""

import contextlib
import ctypes
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import psutil

from mnv2.runtime.cli import leave
from mnv2.runtime.errors import Held, UserError, reason
from mnv2.runtime.files import AnyPath, append_line, sole_writer, to_json
from mnv2.runtime.interruption import EXIT_CODE, Stopped, Stopper
from mnv2.runtime.machine import find_devices, free_memory, keep_compiled_programs, threads
from mnv2.runtime.processes import any_of, broadcast_from_primary, ending_together, is_writer, say
from mnv2.sweeps.division import divide
from mnv2.sweeps.plan import (
    ENDED,
    Plan,
    Request,
    Run,
    claim,
    failures,
    left_over,
    number_of_runs,
    read_plan,
    record,
    with_arms,
)
from mnv2.sweeps.workdir import accuracy, check_comparison, explanation, final_split, record_failure
from mnv2.training import state, step
from mnv2.training.loop import train
from mnv2.training.progress import Progress

LATER_SECONDS = 5.0  # until a run that another command held is tried once more


def work(request: Request, folder: Path, number: int) -> None:
    """Executes runs until none is free. The first copy plans them before, and writes the plan.

    `folder` is the one through which this copy speaks to its parent and the other copies: see
    `sweeps.launch`.
    """
    with ending_together():
        if plan := read_plan(folder):
            _start_jax()
            runs = plan.runs
        else:
            runs = _plan(request, folder)
        try:
            execute(runs, _Reporter(folder, number), request.profile)
        except Stopped as stopped:
            if saved := str(stopped).partition("; ")[2]:
                print(saved, flush=True)
            leave(EXIT_CODE)


def train_here(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str] = (),
    *,
    reports: bool = True,
) -> None:
    """Executes every run of a config that is not finished in this process, one after another.

    For notebooks and tests: `sweeps.launch` does it in processes of their own. Raises RunsFailed at
    the end if any run failed, Stopped if a signal came, and UserError if the config describes no
    runs.
    """
    from mnv2.sweeps.report import finish  # Matplotlib and SciPy take a second

    request = Request(config, workdir, only, parallel=1, threads=threads())
    with tempfile.TemporaryDirectory() as folder:
        runs = _plan(request, Path(folder))
        failed = execute(runs, _Reporter(Path(folder), 0, say))
    for name, process in left_over(runs, failed).items():
        if process:
            say(f"{name} is being done by {process}")
    if is_writer():
        finish(workdir, list(failed), [run.name for run in runs], reports=reports)


def execute(
    runs: Sequence[Run], reporter: "_Reporter", profile: AnyPath | None = None
) -> dict[str, str]:
    """Executes runs until none is free; returns the names of those that failed, and why.

    `profile` is the folder for a trace of the first one. Raises Stopped if a signal came.
    """
    stopper = Stopper(any_of if jax.process_count() > 1 else None)
    with stopper.listening():
        for run, lock in _free_runs(runs, reporter):
            with lock, _attempt(run) as outcome:
                reporter.begins(run)
                outcome["result"] = train(
                    run.settings,
                    run.folder,
                    label=run.name,
                    show=None if reporter.show else reporter.now,
                    stopper=stopper,
                    profile=profile,
                    hyperparameters=run.hyperparameters(),
                )
            profile = None  # the first run is enough
            reporter.ended(run, outcome)
            drop_programs_if_large()
    return reporter.failed()


def _described(outcome: dict[str, Any]) -> str:
    """Says in a few words how a run ended."""
    if "failure" in outcome:
        return f"failed: {outcome['failure']}"
    return f"{final_split(outcome['result'])} {accuracy(outcome['result']):.2f} %"


def _plan(request: Request, folder: Path) -> list[Run]:
    """Checks the config, prepares the data, and writes the plan; returns the runs.

    Raises UserError if any of the runs cannot start.
    """
    config = with_arms(request.config)
    check_comparison(config)
    alone = request.meet is not None or request.profile is not None
    division = divide(number_of_runs(config), 1 if alone else request.parallel, request.threads)
    os.environ.update(division.environment(0))
    if request.meet is not None:
        request.meet()
    devices = _start_jax()
    asked = max(1, number_of_runs(config, request.only))
    said = division._replace(copies=min(division.copies, asked))
    say(f"device: {devices.replace('cpu', 'CPU')}, {said}")
    runs = claim(config, request.workdir, request.only)
    waiting = _not_finished(runs, request.workdir)
    largest = max((run.multiply_adds * run.settings.batch_size for run in waiting), default=0)
    within = division.within_memory(largest)
    copies = max(1, min(within.copies, len(waiting)))
    if within.copies < division.copies:
        say(within.reason)
    if copies > 1:
        # Copies compile different arms at first, and none is left with a long run at the end.
        runs = sorted(runs, key=lambda run: (run.seed, -run.work))
    # The other copies need not warn again of an accelerator that JAX cannot use.
    platform = {"JAX_PLATFORMS": "cpu"} if jax.default_backend() == "cpu" else {}
    environments = [{**within.environment(i), **platform} for i in range(within.copies)]
    Plan(runs, copies, environments, is_writer()).write(folder)
    return runs


def _start_jax() -> str:
    """Prepares libraries that a run needs; returns what JAX computes on."""
    devices = find_devices()
    keep_compiled_programs()
    return devices


def _not_finished(runs: Sequence[Run], workdir: AnyPath) -> list[Run]:
    """Returns the runs that are left to do; says how many are not."""
    waiting = [run for run in runs if not broadcast_from_primary(run.finished)]
    if done := len(runs) - len(waiting):
        say(f"{done} of {len(runs)} runs in {workdir} are finished already")
    return waiting


def _free_runs(
    runs: Sequence[Run], reporter: "_Reporter"
) -> Iterator[tuple[Run, contextlib.ExitStack]]:
    """Yields runs that are free, each locked, until none is.

    A run that another command holds is tried once more, after LATER_SECONDS: the copies of a
    command that was killed take that long to end.
    """

    def are_done() -> bool:
        failed = reporter.failed()
        return all(run.finished or run.name in failed for run in runs)

    tried_again = False
    while True:
        taken = None
        if is_writer():
            taken = _take(runs, reporter)
        index = broadcast_from_primary(-1 if taken is None else runs.index(taken[0]))
        if index >= 0:
            tried_again = False
            yield taken or (runs[index], contextlib.ExitStack())
        elif tried_again or broadcast_from_primary(are_done()):
            return
        else:
            tried_again = True
            until = time.monotonic() + LATER_SECONDS
            while is_writer() and time.monotonic() < until and not are_done():
                time.sleep(LATER_SECONDS / 20)


def _take(runs: Sequence[Run], reporter: "_Reporter") -> tuple[Run, contextlib.ExitStack] | None:
    """Locks the first run that is free; None if there is none."""
    failed = reporter.failed()
    for run in runs:
        if run.name in failed or run.finished:
            continue
        until = contextlib.ExitStack()
        try:
            process = _lock(run, until)
        except UserError as error:  # a folder that cannot be written to
            reporter.ended(run, {"failure": str(error), "seconds": 0.0})
            continue
        if process is None and not run.finished:  # by another process, in the meantime
            return run, until
        until.close()
    return None


def _lock(run: Run, until: contextlib.ExitStack) -> str | None:
    """Locks a run's folder; returns which process holds the lock if another one does."""
    if not is_writer():
        return None
    try:
        until.enter_context(sole_writer(run.folder))
    except Held as error:
        return str(error)
    except OSError as error:
        raise UserError(f"cannot write to {run.folder}: {reason(error)}") from error
    return None


@contextlib.contextmanager
def _attempt(run: Run) -> Iterator[dict[str, Any]]:
    """Records a run that starts, whose folder is locked, and what fails within the context.

    Yields the outcome, a dictionary for the `result`. Afterwards it has `seconds`, and `failure` if
    an error was raised.
    """
    began = time.perf_counter()
    outcome: dict[str, Any] = {}
    try:
        if before := broadcast_from_primary(run.trained or 0):
            say(
                f"{run.name} was finished after {before} steps, and is trained to step "
                f"{run.steps} with the learning rates of a run of that length"
            )
        if is_writer():
            record(run)
        yield outcome
    except Exception as error:
        if is_writer():
            record_failure(run.folder, error)
        if jax.process_count() > 1:
            raise  # the other processes would wait for this one
        outcome["failure"] = explanation(error)
    outcome["seconds"] = time.perf_counter() - began


class _Reporter:
    """Says what this copy does, and how its runs ended: see `sweeps.launch`.

    `show` is called with how each run ended, if there is no parent that shows it.
    """

    def __init__(self, folder: Path, number: int, show: Callable[[str], None] | None = None):
        self._folder, self._number, self.show = folder, number, show
        self._run: Run | None = None

    def begins(self, run: Run) -> None:
        """Says that a run starts."""
        self._run = run
        self.now("starting")

    def now(self, now: Progress | str) -> None:
        """Says what the run does now: its progress, or a phase such as compiling."""
        run = self._run
        assert run is not None
        values: dict[str, Any] = {"run": run.name, "phase": now}
        if isinstance(now, Progress):
            values |= {"phase": "training", **now._asdict()}
            if now.images_per_second:
                values["seconds_per_step"] = run.settings.batch_size / now.images_per_second
        with contextlib.suppress(OSError):  # the parent may have ended
            path = self._folder / f"copy-{self._number}.json"
            unfinished = path.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(values), encoding="utf-8")
            unfinished.replace(path)

    def ended(self, run: Run, outcome: dict[str, Any]) -> None:
        """Says how a run ended. A run that failed is taken by no copy of this command again."""
        line = to_json({"run": run.name, **outcome})
        append_line(self._folder / ENDED.format(self._number), line)
        if self.show:
            self.show(f"{run.name}  {_described(outcome)}")

    def failed(self) -> dict[str, str]:
        """Returns the names of the runs that failed in any copy of this command, and why."""
        return failures(self._folder)


def drop_programs_if_large() -> bool:
    """Drops all compiled programs if this process has grown to half of the memory that is free.

    They stay in memory for the other seeds of an arm: each arm has programs of its own, 200 MB or
    more. After 26 arms a process had 9 GB, and the compiler died. Programs that are needed again
    are read from the cache on the disk. Returns whether they were dropped.
    """
    _return_memory()
    if psutil.Process().memory_info().rss <= free_memory() / 2:
        return False
    step.create_steps.cache_clear()
    state.initializer.cache_clear()
    jax.clear_caches()
    gc.collect()
    _return_memory()
    return True


def _return_memory() -> None:
    """Returns what was freed to the system: after a run 350 MB, which glibc would keep."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
