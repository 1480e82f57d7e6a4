"""A process that executes runs, one after another, as another process tells it.

`sweeps.workers` starts it as `python -m mnv2.sweeps.worker CONNECTION PARENT`: the file descriptor
of a connection to the process PARENT. A worker gets runs, and None at the end. It sends what it
does (see `progress.Show`) and how each run ended (`plan.Outcome`).
"""

import contextlib
import functools
import io
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from mnv2.runtime import cli
from mnv2.runtime.interruption import EXIT_CODE, Stopped, Stopper

GLANCE = 0.2  # seconds between looks at whether the parent still lives


def work(parent: Connection, parent_id: int) -> None:
    """Executes the runs that come over a connection, until None comes or the parent ends."""
    sys.stdout = sys.stderr = io.TextIOWrapper(
        _Pipe(1, "w"), encoding="utf-8", errors="replace", write_through=True
    )
    _stop_with(parent_id)
    # Until the first run a signal ends the process: there is nothing to save, and an exception
    # would get lost while TensorFlow is imported.
    cli.hide_gpus_from_tensorflow()
    from mnv2.runtime import compilation_cache
    from mnv2.runtime.accelerators import find_devices
    from mnv2.sweeps.execute import execute
    from mnv2.training.programs import drop_if_large

    find_devices()  # an error here is one line
    compilation_cache.enable()
    stopper = Stopper()
    try:
        with stopper.listening():
            show = functools.partial(_send, parent)
            while (one := parent.recv()) is not None:
                _send(parent, execute(one, stopper=stopper, show=show))
                drop_if_large()
    except Stopped as stopped:
        if saved := str(stopped).partition("; ")[2]:
            print(saved, flush=True)
        cli.leave(EXIT_CODE)
    except EOFError:
        cli.leave(EXIT_CODE)


class _Pipe(io.FileIO):
    """A pipe to a process that may have ended: what is printed then must not be an error."""

    def write(self, data: Any) -> int:
        with contextlib.suppress(BrokenPipeError):
            return super().write(data)
        return len(data)


def _send(parent: Connection, message: Any) -> None:
    with contextlib.suppress(OSError):  # the parent has ended; a signal follows, see `_stop_with`
        parent.send(message)


def _stop_with(parent_id: int) -> None:
    """Sends this process SIGTERM when its parent has ended, however it ended."""

    def watch() -> None:
        while os.getppid() == parent_id:
            time.sleep(GLANCE)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="watch", daemon=True).start()


if __name__ == "__main__":
    stream, process = map(int, sys.argv[1:])
    cli.run(functools.partial(work, Connection(stream), process))
