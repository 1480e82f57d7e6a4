"""Executes the runs of a sweep in K copies of this command, each with cores or devices of its own.

The command that a user starts, the parent, trains nothing and imports no JAX. It starts the first
copy of itself, which checks the config, prepares the data and writes the plan; then the others,
which read it. A copy takes one run after another: the lock of a run's folder says which are free.
The parent shows how far they are, passes signals on, and starts a copy that dies once more.

The processes speak through a local folder, LAUNCH:

    plan.pickle     what the first copy has planned
    copy-N.json     what copy N does
    ended-N.jsonl   how each of its runs ended; a run that failed is taken by no copy again
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from mnv2.runtime import machine
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath, append_line, read_json, read_lines, to_json, write_text
from mnv2.runtime.interruption import EXIT_CODE, Stopped, Stopper
from mnv2.sweeps import workdir as workdirs
from mnv2.sweeps.display import Display
from mnv2.sweeps.plan import ENDED, Plan, Request, failures, left_over, read_plan

# Environment variables of a copy: its number, the folder, and the process that started it.
COPY, LAUNCH, PARENT = "MNV2_COPY", "MNV2_LAUNCH", "MNV2_PARENT"
# TensorFlow imports Keras 3, with Matplotlib, but not the older one if that is not installed.
WITHOUT_KERAS = {"TF_USE_LEGACY_KERAS": "1"}
GLANCE_SECONDS = 0.2  # between looks at the copies
STOPPING_SECONDS = 60.0  # that copies may take to save their runs after a signal


def run_sweep(config: ml_collections.ConfigDict, workdir: AnyPath, *only: str, **more: Any) -> None:
    """Executes every run that is not finished, and writes the report: see `Request`.

    Must be called by a command, of which copies can be started. In a copy it does the copy's part
    and ends the process; a copy that comes to another workdir first returns, because that is done.

    Raises RunsFailed at the end if any run failed, Stopped if a signal came, and UserError if the
    config describes no runs.
    """
    request = Request(config, workdir, only, **more)
    if not is_copy():
        with tempfile.TemporaryDirectory(prefix="mnv2-") as folder:
            _Launch(request, Path(folder)).execute()
        return
    here = Path(os.environ[LAUNCH])
    if (here / "workdir").read_text(encoding="utf-8") != str(workdir):
        return
    number = int(os.environ[COPY])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from mnv2.sweeps.run import work  # imports JAX

    work(request, here, number)
    sys.exit(0)


def _end_with_parent() -> None:
    """Sends this process SIGTERM when the parent has ended, however and whenever it ended."""
    parent = int(os.environ.get(PARENT, os.getppid()))
    while os.getppid() == parent:
        time.sleep(GLANCE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def is_copy() -> bool:
    """Tells whether this process is a copy that another one has started."""
    return COPY in os.environ


class _Copy:
    """A copy of the command, and what is known of it."""

    def __init__(self, number: int, folder: Path, environment: dict[str, str], display: Display):
        self.number, self.ended_path = number, folder / ENDED.format(number)
        self.path = folder / f"copy-{number}.json"
        self.path.unlink(missing_ok=True)
        self.reported = len(read_lines(self.ended_path))  # of its runs that ended
        self.process = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]],
            env={
                **os.environ,
                **environment,
                **{COPY: str(number), LAUNCH: str(folder), PARENT: str(os.getpid())},
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # otherwise Ctrl-C would reach it in addition to our signal
        )
        self._readers = [
            threading.Thread(target=_show_all, args=(stream, display, is_error), daemon=True)
            for stream, is_error in ((self.process.stdout, False), (self.process.stderr, True))
        ]
        for reader in self._readers:
            reader.start()

    def look(self) -> dict[str, Any]:
        """Returns what the copy does; {} before it has said so."""
        with contextlib.suppress(UserError):
            return read_json(self.path, "")
        return {}

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def ended(self) -> int | None:
        """Returns the exit code, after all that was printed is shown; None while it runs."""
        if self.process.poll() is not None:
            for reader in self._readers:
                reader.join(1.0)
        return self.process.returncode


def _show_all(stream: Any, display: Display, is_error: bool) -> None:
    """Shows the lines that a copy prints; those that several copies print are shown once."""
    for line in stream:
        # Of a line that was rewritten, such as a progress bar, the last state.
        if text := line.decode(errors="replace").rstrip().rpartition("\r")[2]:
            display.say(text, once=True, is_error=is_error)


class _Launch:
    """The parent's part: copies that are started, watched, started again and ended."""

    def __init__(self, request: Request, folder: Path):
        self._request, self._folder = request, folder
        write_text(folder / "workdir", str(request.workdir))
        self._copies: list[_Copy] = []
        self._restarted: set[int] = set()
        self._deaths: Counter[str] = Counter()
        self._plan = Plan([], 0, [], False)
        self._stopper = Stopper()

    def execute(self) -> None:
        """Executes the runs, and writes the report. Raises as `run_sweep` does."""
        with self._stopper.listening(), self._stopper.deferred(), Display() as display:
            self._display = display
            with self._ending():
                self._copies = [self._start(0)]
                self._await_plan()
                display.show(self._plan.runs)
                for number in range(1, self._plan.copies):
                    self._copies.append(self._start(number))
                while self._copies:
                    self._watch()
        if self._plan.writes:
            from mnv2.sweeps.report import finish  # Matplotlib and SciPy take a second

            asked, failed = [run.name for run in self._plan.runs], failures(self._folder)
            request = self._request
            finish(request.workdir, list(failed), asked, reports=request.reports)

    def _start(self, number: int) -> _Copy:
        environments = self._plan.environments
        environment = environments[number] if environments else {}
        variables = {**machine.huge_pages(), **WITHOUT_KERAS, **environment}
        return _Copy(number, self._folder, variables, self._display)

    def _await_plan(self) -> None:
        """Waits for the plan of the first copy. Ends as that copy does if it ends before."""
        while (plan := read_plan(self._folder)) is None:
            self._stopper.check()
            time.sleep(GLANCE_SECONDS)
            (first,) = self._copies
            code = first.ended()
            if code is not None and read_plan(self._folder) is None:
                self._copies = []
                if code >= 0:
                    sys.exit(code)
                self._died(first, code, None)
        self._plan = plan

    def _watch(self) -> None:
        """Looks at every copy once."""
        self._stopper.check()
        time.sleep(GLANCE_SECONDS)
        for copy in list(self._copies):
            now, code = copy.look(), copy.ended()
            self._display.now(copy.number, now if code is None else {})
            self._note_ended(copy)
            if code is not None:
                self._copies.remove(copy)
                if code:
                    self._died(copy, code, now.get("run"))
        if not self._copies:
            self._resume_left_over()

    def _note_ended(self, copy: _Copy) -> None:
        for outcome in read_lines(copy.ended_path)[copy.reported :]:
            copy.reported += 1
            self._display.ended(outcome)

    def _died(self, copy: _Copy, code: int, name: str | None) -> None:
        """Starts a copy that died once more, unless the system ended it for lack of memory."""
        if code == EXIT_CODE:
            raise Stopped("a signal to a process that trains")
        if self._request.meet is not None:  # all machines must be started again
            sys.exit(code if code > 0 else 1)
        how = _describe(code)
        done = {x["run"] for x in read_lines(copy.ended_path)}
        if name and name not in done:
            self._deaths[name] += 1
            if self._deaths[name] > 1:
                self._give_up(name, f"its process {how}, for the second time")
            else:
                self._display.say(f"the process of {name} {how}; the run is resumed")
        else:
            self._display.say(f"a process {how}")
        if code == -signal.SIGKILL and self._copies:
            count = len(self._copies)
            self._display.say(f"{count} at the same time from now on, for lack of memory")
        elif copy.number not in self._restarted:
            self._restarted.add(copy.number)
            self._copies.append(self._start(copy.number))
        elif not self._copies:
            raise UserError(
                "all processes died: see the lines above; the same command resumes, and "
                "--parallel 1 executes one run at a time"
            )

    def _give_up(self, name: str, message: str) -> None:
        line = to_json({"run": name, "failure": message})
        append_line(self._folder / ENDED.format("parent"), line)
        workdirs.record_failure(self._request.workdir / name, UserError(message))
        self._display.say(f"{name} failed: {message}")

    def _resume_left_over(self) -> None:
        """Starts a copy again if one died whose run no other copy was there to resume.

        Otherwise names the runs that processes of another command execute.
        """
        left = left_over(self._plan.runs, failures(self._folder))
        if any(not process and name in self._deaths for name, process in left.items()):
            self._copies.append(self._start(0))
            return
        for name, process in left.items():
            if process:
                self._display.say(f"{name} is being done by {process}")

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Ends the copies, however the context ends: they save their runs, except if killed."""
        try:
            yield
        except KeyboardInterrupt:
            self._end_all(signal.SIGKILL)
            raise
        except BaseException as error:
            if self._copies and isinstance(error, Stopped):
                self._display.say("stopping: each process saves its run")
            try:
                self._end_all(signal.SIGTERM)
            except KeyboardInterrupt:  # a second Ctrl-C
                self._end_all(signal.SIGKILL)
                raise
            raise

    def _end_all(self, number: int) -> None:
        for copy in self._copies:
            copy.signal(number)
        deadline = time.monotonic() + STOPPING_SECONDS
        for copy in self._copies:
            while copy.ended() is None:
                if time.monotonic() > deadline:
                    self._display.say(f"process {copy.process.pid} does not answer, and is killed")
                    copy.signal(signal.SIGKILL)
                time.sleep(GLANCE_SECONDS / 4)


def _describe(code: int) -> str:
    """Says how a process ended: was killed (SIGKILL), or ended with exit code 1."""
    if code >= 0:
        return f"ended with exit code {code}"
    memory = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
    return f"was killed ({signal.Signals(-code).name}{memory})"
