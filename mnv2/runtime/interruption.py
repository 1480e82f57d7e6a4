"""SIGTERM and SIGINT: a run finishes its step and saves its state; the same command resumes it.

SLURM and clouds also send SIGTERM before they take a machine away.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h: not done, try again
ABANDONED = "abandoned after a signal"  # the name of threads that nobody then waits for
# Several processes talk once per this many checks, because a talk waits for every device. They talk
# at every check if the steps between two checks take longer than SLOW.
BETWEEN_TALKS = 10
SLOW = 1.0  # seconds
GLANCE = 0.1  # seconds between looks for a signal while something else is waited for


class Stopped(BaseException):
    """A signal asked the process to stop. Not an Exception, so that no error handler catches it."""


class Stopper:
    """Turns SIGTERM and SIGINT into the exception Stopped, at a moment when that is safe.

    Within `deferred()` a signal is only noted: the loop calls `check` between steps, which raises.
    A second SIGINT then raises KeyboardInterrupt. Elsewhere within `listening()` a signal raises
    Stopped immediately. Everything but `listening` may be used in several threads; the main thread
    must then be within `deferred()` all the time.

    With several processes, `any_of` tells whether a value is true in any of them; all processes
    then stop at the same `check`.
    """

    def __init__(self, any_of: Callable[[bool], bool] | None = None) -> None:
        self._noted: str | None = None
        self._deferring = 0  # how many contexts do
        self._lock = threading.Lock()
        self._any_of = any_of
        self._silent, self._every = 0, 1  # checks since the last talk, checks between talks
        self._talked = time.monotonic()

    @property
    def noted(self) -> bool:
        """Tells whether a signal came to this process."""
        return self._noted is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles both signals within the context. Must be entered in the main thread."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets signals wait until `check` is called."""
        self._defer(1)
        try:
            yield
        finally:
            self._defer(-1)
        self.check()

    def _defer(self, contexts: int) -> None:
        with self._lock:
            self._deferring += contexts

    def compile[Result](self, work: Callable[[], Result]) -> Result:
        """Returns the result of `work`, which may take minutes; a signal does not wait for it.

        `work` runs in a thread, because Python handles signals only when XLA returns. If a signal
        comes, Stopped is raised and the thread is abandoned. With several processes, which must
        stop together, `work` runs in the main thread and signals wait.
        """
        if self._any_of is not None:
            return work()
        done: Future[Result] = Future()

        def in_a_thread() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        threading.Thread(target=in_a_thread, name=ABANDONED, daemon=True).start()
        while not wait((done,), GLANCE).done:
            self.check()
        return done.result()

    def check(self) -> None:
        """Raises Stopped if a signal came to this process or, with several, to another one."""
        if self._any_of is None:
            if self._noted:
                raise Stopped(self._noted)
            return
        self._silent += 1
        if self._silent < self._every:
            return
        if self._any_of(self._noted is not None):
            raise Stopped(self._noted or "a signal to another process")
        now = time.monotonic()
        slow = self._any_of((now - self._talked) / self._silent > SLOW)
        self._silent, self._every, self._talked = 0, 1 if slow else BETWEEN_TALKS, now

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._noted = signal.Signals(number).name
        if not self._deferring:
            raise Stopped(self._noted)


def abandoned() -> bool:
    """Tells whether a thread still computes for which nobody waits: Python cannot exit as usual."""
    return any(thread.name == ABANDONED for thread in threading.enumerate())


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
