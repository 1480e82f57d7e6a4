"""Traces a few training steps, to see on what the devices spend their time."""

from typing import Any

import jax

from mnv2.runtime.files import AnyPath
from mnv2.runtime.processes import say

FIRST = 3  # the first step that is traced: the first one compiles, the second one warms up
STEPS = 10


class Trace:
    """Writes a trace of the steps FIRST to FIRST + STEPS - 1 of this process to `folder`.

    Without a folder it does nothing. A run with fewer steps is traced to its end.
    """

    def __init__(self, folder: AnyPath | None):
        self._folder = folder
        self._steps = 0
        self._traces = False

    @property
    def waits(self) -> bool:
        """Tells whether steps must come one by one, because some are still to be traced."""
        return self._folder is not None and self._steps < FIRST - 1 + STEPS

    def after_step(self, state: Any) -> None:
        """Counts a step, and starts or ends the trace once the devices have computed `state`."""
        if self._folder is None:
            return
        self._steps += 1
        if self._steps == FIRST - 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._traces = True
        elif self._steps == FIRST - 1 + STEPS:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Ends the trace if it has begun."""
        if self._traces:
            jax.profiler.stop_trace()
            self._traces = False
            say(f"trace of {self._steps - FIRST + 1} steps: xprof --logdir {self._folder}")
