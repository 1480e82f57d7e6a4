"""SIGTERM and SIGINT: the step is finished, the state saved, and the same command goes on later.

What SLURM and clouds send before they take a machine away is SIGTERM, too.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import FrameType

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, to be tried again
COMPILING = "compiling"  # a thread
# Several processes talk at every so many checks, since a talk waits for every device, and at each
# check where one takes longer than SLOW: who sent the signal may not wait for ten of those.
BETWEEN_TALKS = 10
SLOW = 1.0  # seconds


class Stopped(BaseException):
    """A signal asked the process to stop. Not an Exception: no handler of errors may keep it."""


class Stopper:
    """What a signal does depends on where it comes.

    Within `deferred()` it is only noted, for the loop to look at between steps, and a second SIGINT
    raises KeyboardInterrupt. Anywhere else within `listening()` it raises Stopped, and so it does
    while `compile` waits.

    With `any_of`, which tells whether something is true in any process, all stop at one `check`.
    """

    def __init__(self, any_of: Callable[[bool], bool] | None = None) -> None:
        self._noted: str | None = None
        self._deferring = False
        self._any_of = any_of
        self._silent, self._every = 0, 1  # checks since the last talk, and until the next
        self._talked = time.monotonic()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Takes both signals over; must be entered in the main thread."""
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals wait until `check` is called."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False
        self.check()

    def compile[Result](self, work: Callable[[], Result]) -> Result:
        """The result of `work`, for which a signal need not wait: it may take minutes.

        Python's handlers would only run when XLA returns, hence the thread. It is left to itself if
        a signal comes; not so where several processes must stop together.
        """
        if self._any_of is not None:
            return work()
        done: Future[Result] = Future()

        def in_a_thread() -> None:
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)

        threading.Thread(target=in_a_thread, name=COMPILING, daemon=True).start()
        deferring, self._deferring = self._deferring, False
        try:
            self.check()
            return done.result()
        finally:
            self._deferring = deferring

    def check(self) -> None:
        """Raises Stopped if a signal has come, or was found to have come to another process."""
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


def compiling() -> bool:
    """Whether what `compile` was to wait for is still under way: Python cannot end beside it."""
    return any(thread.name == COMPILING for thread in threading.enumerate())


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
