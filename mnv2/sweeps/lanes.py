"""Several runs at the same time in this process: on devices of their own, or as one program.

For accelerators. A TPU host has one process for all its chips, so that workers cannot share them. A
network that is too small for a GPU leaves it idle most of the time.
"""

import functools
import itertools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import ABANDONED, Stopped, Stopper
from mnv2.sweeps.plan import Run
from mnv2.training.devices import Devices
from mnv2.training.feed import fits
from mnv2.training.programs import drop_if_large
from mnv2.training.setup import set_up
from mnv2.training.together import Group, Member

# Runs that differ in nothing else have equal programs.
MAY_DIFFER = ("seed", "optimization.learning_rate")


class Lanes(NamedTuple):
    """How this process divides its devices among runs.

    devices   of each run; None: each run uses all of them
    together  the number of runs whose steps are one program
    """

    devices: int | None = None
    together: int = 1

    @property
    def several(self) -> bool:
        """Tells whether several runs may be executed at the same time."""
        return self.devices is not None or self.together > 1

    def of_devices(self) -> list[Devices]:
        """Returns the devices of each lane. Raises UserError if they cannot be divided evenly."""
        if self.devices is None:
            return [None]
        everything = jax.devices()
        if len(everything) % self.devices:
            raise UserError(
                f"--devices_per_run must divide the number of devices, {len(everything)}, "
                f"got {self.devices}"
            )
        return [tuple(some) for some in itertools.batched(everything, self.devices)]

    def groups(self, runs: Sequence[Run]) -> list[list[Run]]:
        """Divides runs into groups of equal programs, as even as possible.

        Runs whose data does not fit on the devices are alone.
        """
        alike: dict[str, list[Run]] = {}
        for one in runs:
            fields = {k: v for k, v in one.settings.flat().items() if k not in MAY_DIFFER}
            alike.setdefault(repr(sorted(fields.items())), []).append(one)
        groups = []
        for same in alike.values():
            count = -(-len(same) // self._most(same[0]))
            groups += [list(some) for some in itertools.batched(same, -(-len(same) // count))]
        return groups

    def _most(self, one: Run) -> int:
        if self.together == 1:
            return 1
        setup = set_up(one.settings, self.of_devices()[0])
        return self.together if fits(setup, one.settings) else 1


def describe(groups: Sequence[Sequence[Run]], lanes: Sequence[Devices]) -> str:
    """Says in one line how many runs are executed at the same time."""
    size = max(map(len, groups))
    parts = []
    if lanes[0] is not None:
        what, devices = "programs" if size > 1 else "runs", len(lanes[0])
        parts.append(
            f"{len(lanes)} {what} at the same time, {devices} device{'s' * (devices > 1)} each"
        )
    if size > 1:
        parts.append(f"up to {size} runs in one program")
    return ", ".join(parts) or "one run after another: no two have equal programs"


def execute_in_lanes(
    groups: Sequence[Sequence[Run]],
    lanes: Sequence[Devices],
    attempt: Callable[[int, Run, Devices, Member | None], None],
    stopper: Stopper,
) -> None:
    """Executes groups of runs, one group at a time in each lane.

    Calls `attempt` in a thread for each run, with a number that no other run has at that time.
    Raises Stopped when all runs have saved their state after a signal, and what `attempt` raises.
    """
    waiting: queue.SimpleQueue[Sequence[Run]] = queue.SimpleQueue()
    for group in groups:
        waiting.put(group)
    size = max(map(len, groups), default=0)
    ends: list[BaseException] = []  # what ended a lane early

    def lane(number: int, devices: Devices) -> None:
        while not ends:
            try:
                group = waiting.get_nowait()
            except queue.Empty:
                return
            members: list[Member] | list[None] = [None]
            if len(group) > 1:
                members = Group(len(group), lambda: stopper.noted).members()
            numbers = itertools.count(number * size)
            _in_threads(
                [
                    functools.partial(of_group, *its, devices)
                    for its in zip(numbers, group, members, strict=False)
                ]
            )
            if len(lanes) == 1:  # no other lane computes
                drop_if_large()

    def of_group(number: int, one: Run, member: Member | None, devices: Devices) -> None:
        try:
            attempt(number, one, devices, member)
        except BaseException as error:  # Stopped, or a folder that cannot be written to
            ends.append(error)
        finally:
            if member is not None:
                member.leave()

    with stopper.deferred():
        _in_threads([functools.partial(lane, i, devices) for i, devices in enumerate(lanes)])
        for end in ends:
            if not isinstance(end, Stopped):
                raise end
        if ends:  # each says the signal, and what was saved
            parts = [part for end in ends for part in str(end).split("; ")]
            raise Stopped("; ".join(dict.fromkeys(parts)))


def _in_threads(calls: Sequence[Callable[[], None]]) -> None:
    """Calls each in a thread of its own, and waits for all."""
    threads = [threading.Thread(target=call, name=ABANDONED, daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
