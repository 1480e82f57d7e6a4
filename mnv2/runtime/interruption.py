"""SIGTERM and SIGINT: a run finishes its step and saves its state; the same command resumes it.

SLURM and clouds also send SIGTERM before they take a machine away.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL in sysexits.h: not done, try again
# Several processes talk once per this many checks, because a talk waits for every device. They talk
# at every check if the steps between two checks take longer than SLOW.
BETWEEN_TALKS = 10
SLOW = 1.0  # seconds


class Stopped(BaseException):
    """A signal asked the process to stop. Not an Exception, so that no error handler catches it."""


class Stopper:
    """Turns SIGTERM and SIGINT into the exception Stopped, at a moment when that is safe.

    Within `deferred()` a signal is only noted: the loop calls `check` between steps, which raises.
    A second SIGINT then raises KeyboardInterrupt. Elsewhere within `listening()` a signal raises
    Stopped immediately.

    With several processes, `any_of` tells whether a value is true in any of them; all processes
    then stop at the same `check`.
    """

    def __init__(self, any_of: Callable[[bool], bool] | None = None) -> None:
        self._noted: str | None = None
        self._listens = self._defers = False
        self._any_of = any_of
        self._silent, self._every = 0, 1  # checks since the last talk, checks between talks
        self._talked = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handles both signals within the context. Must be entered in the main thread."""
        self._listens = True
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            self._listens = False
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Lets signals wait until `check` is called."""
        before, self._defers = self._defers, True
        try:
            yield
        finally:
            self._defers = before
        self.check()

    @contextlib.contextmanager
    def may_die(self) -> Iterator[None]:
        """Lets a signal end the process at once, where there is nothing to save.

        For what may take minutes, such as a compilation: Python handles signals only when XLA
        returns. Several processes must stop together, so their signals wait.
        """
        if not self._listens or self._any_of is not None:
            yield
            return
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        try:
            self.check()  # it came before
            yield
        finally:
            for number in _SIGNALS:
                signal.signal(number, self._handle)

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
        if not self._defers:
            raise Stopped(self._noted)


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
