"""Executes the runs of a sweep that are not finished in this process."""

import contextlib
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from mnv2.runtime import compilation_cache
from mnv2.runtime.accelerators import find_devices
from mnv2.runtime.errors import Held, NotFinite, RunsFailed, UserError, reason
from mnv2.runtime.files import AnyPath, sole_writer, write_text
from mnv2.runtime.interruption import Stopper
from mnv2.runtime.layout import FAILURE
from mnv2.runtime.processes import any_of, is_writer, number_of_first, of_first, say
from mnv2.runtime.terminal import format_seconds, short_path
from mnv2.sweeps import workdir as workdirs
from mnv2.sweeps.display import Display
from mnv2.sweeps.lanes import Lanes, describe, execute_in_lanes
from mnv2.sweeps.plan import Outcome, Run
from mnv2.sweeps.schedule import longest_first, multiply_adds
from mnv2.training.devices import Devices
from mnv2.training.loop import train
from mnv2.training.programs import drop_if_large
from mnv2.training.progress import Show
from mnv2.training.together import Member


def run_sweep(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str] = (),
    *,
    reports: bool = True,
    profile: AnyPath | None = None,
    lanes: Lanes | None = None,
) -> None:
    """Executes every run that is not finished, then writes the report.

    The runs are executed one after another, or in several `lanes`. A run that fails does not stop
    the others. A run that another process is executing is skipped. `profile` is the folder for a
    trace of some steps of the first run. Raises RunsFailed at the end if any run failed, and
    Stopped if a signal came.
    """
    say(f"JAX computes on {find_devices()}")
    several = jax.process_count() > 1
    stopper = Stopper(any_of if several else None)
    with stopper.listening():
        failed = _execute_all(config, workdir, only, stopper, profile, lanes or Lanes())
    finish(workdir, failed, reports=reports)


def finish(workdir: AnyPath, failed: dict[str, str], *, reports: bool) -> None:
    """Writes the report, if it is wanted and any run is finished.

    Raises RunsFailed if any run failed, with the names of these runs and the reasons.
    """
    if reports and is_writer() and any(workdirs.load(workdir).results.values()):
        from mnv2.sweeps.report import write_report  # Matplotlib and SciPy take a second

        write_report(workdir)
    if failed:
        raise RunsFailed(
            f"{len(failed)} of the runs failed: "
            + "; ".join(f"{name}: {message}" for name, message in failed.items())
        )


def _execute_all(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str],
    stopper: Stopper,
    profile: AnyPath | None,
    lanes: Lanes,
) -> dict[str, str]:
    """Executes the runs; returns the names of those that failed, and the reasons."""
    cache = compilation_cache.enable()
    of_lanes = lanes.of_devices()
    runs = workdirs.claim(config, workdir, only, of_lanes[0])
    waiting = not_finished(runs, workdir)
    groups = []
    if lanes.several:
        work = multiply_adds(waiting, devices=of_lanes[0])
        groups = lanes.groups(longest_first(waiting, work))
    began, first_steps = time.perf_counter(), 0.0
    failed: dict[str, str] = {}
    known = workdirs.load(workdir).results
    workers = max(map(len, groups), default=1) * len(of_lanes)

    def attempt(
        worker: int, one: Run, devices: Devices = None, member: Member | None = None
    ) -> None:
        nonlocal profile, first_steps
        display.started(worker, one)
        outcome = execute(
            one,
            stopper=stopper,
            show=lambda now: display.now(worker, now),
            profile=profile,
            devices=devices,
            member=member,
        )
        display.ended(worker, outcome)
        if outcome.result is not None:
            profile = None  # the first run is enough
            first_steps += outcome.result["first_step_seconds"]
        if outcome.failure is not None:
            failed[one.name] = outcome.failure

    with Display(runs, waiting, known, workers=workers, shown=is_writer()) as display:
        if groups:
            say(describe(groups, of_lanes))
            execute_in_lanes(groups, of_lanes, attempt, stopper)
        else:
            for one in waiting:
                attempt(0, one)
                drop_if_large()
    if waiting and not groups:
        kept = f"; compiled programs are kept in {short_path(Path(cache))}" if cache else ""
        say(
            f"{format_seconds(first_steps)} of {format_seconds(time.perf_counter() - began)} were "
            f"first steps, with compilation{kept}"
        )
    return failed


def not_finished(runs: Sequence[Run], workdir: AnyPath) -> list[Run]:
    """Returns the runs that are left to do; says how many are not."""
    waiting = [one for one in runs if not of_first(one.finished)]
    if done := len(runs) - len(waiting):
        say(f"{done} of {len(runs)} runs in {workdir} are finished already")
    return waiting


def execute(
    one: Run,
    *,
    stopper: Stopper,
    show: Show,
    profile: AnyPath | None = None,
    devices: Devices = None,
    member: Member | None = None,
) -> Outcome:
    """Executes a run in this process, unless it is finished or another process executes it.

    It computes on `devices`, and together with others if it is the `member` of a group.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as held:
        try:
            if holder := _hold(one, held):
                return Outcome(holder=holder)
            if of_first(one.finished):  # by another process, in the meantime
                return Outcome()
            if before := number_of_first(one.trained or 0):
                say(
                    f"{one.name} was finished after {before} steps, and is trained to step "
                    f"{one.steps} with the learning rates of a run of that length"
                )
            if is_writer():
                workdirs.record(one, devices, together=member.of if member else 1)
            result = train(
                one.settings,
                one.folder,
                label=one.name,
                show=show,
                stopper=stopper,
                profile=profile,
                devices=devices,
                member=member,
            )
        except Exception as error:
            if is_writer():
                record_failure(one.folder, error)
            if jax.process_count() > 1:
                raise  # the other processes would wait for this one
            return Outcome(failure=_explanation(error), seconds=time.perf_counter() - began)
    return Outcome(result, seconds=time.perf_counter() - began)


def _hold(one: Run, until: contextlib.ExitStack) -> str | None:
    """Locks a run's folder; returns which process holds the lock if another one does."""
    holder = None
    if is_writer():
        try:
            until.enter_context(sole_writer(one.folder))
        except Held as held:
            holder = str(held)
        except OSError as error:
            raise UserError(f"cannot write to {one.folder}: {reason(error)}") from error
    return (holder or "another process") if of_first(holder is not None) else None


def _explanation(error: Exception) -> str:
    """Returns one line: a UserError's message, or the type and message of any other error."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


def record_failure(folder: AnyPath, error: Exception) -> None:
    """Writes the traceback, with the message as its last line, to the run's folder if possible.

    An error in what a user gave has no traceback. NotFinite has its name as the first line.
    """
    lines = [] if isinstance(error, UserError) else traceback.format_exception(error)
    if isinstance(error, NotFinite):
        lines = [f"{NotFinite.__name__}\n"]
    with contextlib.suppress(OSError):  # a full disk may be what failed
        write_text(folder / FAILURE, "".join([*lines, _explanation(error), "\n"]))
