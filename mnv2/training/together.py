"""Runs whose programs are equal compute their steps together: one program for several networks.

Each run has a thread of its own, in which it trains, evaluates and saves as it does alone. Only for
their training steps the threads wait for each other. A small network leaves most of a GPU idle; a
program over several of them starts hardly more kernels than one of a single network.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

type Posts = dict[int, Any]  # a value from each member, by its number


class Group:
    """Several runs, from 0 on, that go on together until each of them leaves.

    `stops` tells whether they are to stop, all after the same step.
    """

    def __init__(self, size: int, stops: Callable[[], bool] = lambda: False):
        self.size, self.stops = size, stops
        self._present = set(range(size))
        self._posts: Posts = {}
        self._answers: Posts = {}
        self._changed = threading.Condition()
        self._shared: dict[str, Any] = {}

    def members(self) -> list["Member"]:
        """Returns the places of the runs in the group."""
        return [Member(self, number) for number in sorted(self._present)]

    def exchange(self, number: int, value: Any, combine: Callable[[Posts], Posts]) -> Any:
        """Waits for the values of all members that are present; returns the answer to this one.

        One of their threads computes all answers by `combine`. What it raises is raised in each.
        """
        with self._changed:
            self._posts[number] = value
            self._changed.notify_all()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: number in self._answers or self._complete())
                if number in self._answers:
                    answer = self._answers.pop(number)
                    break
                posts, self._posts = self._posts, {}
            answers = _answers(posts, combine)  # takes long: others may leave meanwhile
            with self._changed:
                self._answers.update(answers)
                self._changed.notify_all()
        if isinstance(answer, _Raised):
            raise answer.error
        return answer

    def leave(self, number: int) -> None:
        """Lets the others go on without a member."""
        with self._changed:
            self._present.discard(number)
            self._posts.pop(number, None)
            self._changed.notify_all()

    def share(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` returned for the first member that asked."""
        with self._changed:
            if what not in self._shared:
                self._shared[what] = make()
            return self._shared[what]

    def _complete(self) -> bool:
        return bool(self._posts) and self._posts.keys() >= self._present


class Member:
    """The place of one run in a group `of` several."""

    def __init__(self, group: Group, number: int):
        self.of, self._group, self._number = group.size, group, number

    def agree(self, count: int) -> int:
        """Returns the smallest number of steps that any member wants to do next; 0 to stop."""

        def smallest(counts: Posts) -> Posts:
            return dict.fromkeys(counts, 0 if self._group.stops() else min(counts.values()))

        return self._group.exchange(self._number, count, smallest)

    def compute[Part, Result](
        self, part: Part, together: Callable[[list[Part]], Sequence[Result]]
    ) -> Result:
        """Returns this run's part of what `together` returns for the parts of all members."""

        def combine(posts: Posts) -> Posts:
            return dict(zip(posts, together(list(posts.values())), strict=True))

        return self._group.exchange(self._number, part, combine)

    def share(self, what: str, make: Callable[[], Any]) -> Any:
        """Returns what `make` returned for the first member that asked: the same for all."""
        return self._group.share(what, make)

    def leave(self) -> None:
        """Lets the others go on without this run; may be called again."""
        self._group.leave(self._number)


class _Raised:
    def __init__(self, error: Exception):
        self.error = error


def _answers(posts: Posts, combine: Callable[[Posts], Posts]) -> Posts:
    try:
        return combine(posts)
    except Exception as error:
        return dict.fromkeys(posts, _Raised(error))
