"""Runs one framework at one task in this process, and times its steps on request.

`experiments.speed.throughput` starts it with NAME TASK, with the task as JSON, and talks to it over
pipes. The process writes "ready" when it has compiled. It then answers each line "SECONDS" with a
line of JSON: the seconds of each step that began within that time, and its peak resident memory in
bytes.
"""

import contextlib
import ctypes
import json
import os
import signal
import sys

from experiments.common.timing import peak_memory, reset_peak_memory, times
from experiments.speed.frameworks.steps import CONTENDERS
from experiments.speed.frameworks.tasks import Task


def main() -> None:
    name, task = sys.argv[1], Task(**json.loads(sys.argv[2]))
    with contextlib.suppress(OSError, AttributeError):
        # Linux kills this process when its parent ends. A stopped one would stay for ever.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    # All frameworks get the same processors. XLA takes its number of threads from their number.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task.threads])
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # stdout is for answers; the output of frameworks goes to the log
    step = CONTENDERS[name].make_step(task)
    for _ in range(3):
        step()
    reset_peak_memory()
    answers.write('"ready"\n')
    for line in sys.stdin:
        seconds = list(times(step, float(line)))
        answers.write(json.dumps({"seconds": seconds, "peak_memory": peak_memory()}) + "\n")


if __name__ == "__main__":
    main()
