"""What a person reads while a command works: one line that is rewritten, and readable durations."""

import functools
import re
import sys
from collections.abc import Iterable

NOTICEABLE = 0.05  # the share of the time spent waiting for input above which it is mentioned
WAITING_REMEDY = (
    "to wait less for input: prepare the set with smaller pictures (python -m mnv2.prepare NAME "
    "--resize 256 --out PATH), or use more cores"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
WIDTH = 79  # characters, so that the line fits a terminal of 80 columns


class StatusLine:
    """A line in the terminal that is rewritten in place. Nothing is written to a file or pipe."""

    def __init__(self, label: str):
        self.label = label
        self._shown = False

    def say(self, text: object) -> None:
        """Replaces the line by the label and `text`."""
        if sys.stdout.isatty():
            line = f"{self.label}  {text}".lstrip()
            print(f"\r{line[:WIDTH]:{WIDTH}}", end="", flush=True)
            self._shown = True

    def clear(self) -> None:
        """Removes the line, so that an ordinary line can be printed."""
        if self._shown:
            print(f"\r{'':{WIDTH}}\r", end="", flush=True)
            self._shown = False


def first_few(names: Iterable[object], count: int = 3) -> str:
    """Returns the first names of a list, and how many more there are: `a, b, c and 4 more`."""
    every = [str(name) for name in names]
    more = f" and {len(every) - count} more" if len(every) > count else ""
    return ", ".join(every[:count]) + more


def printable(name: object) -> str:
    """Returns a name as every file can hold it: bytes that are no UTF-8 become question marks."""
    return str(name).encode("utf-8", "replace").decode("utf-8")


def drawn(name: object) -> str:
    """Returns a name as Matplotlib draws it: as it is, and not as a formula between dollars."""
    return printable(name).replace("$", r"\$")


def as_line(name: object) -> str:
    """Returns a name without ends of lines and control characters, which a terminal would obey."""
    return CONTROL.sub(" ", printable(name))


def note(text: str) -> None:
    """Says in one line, on stderr, what was assumed or left out."""
    print(f"note: {' '.join(text.split())}", file=sys.stderr, flush=True)


@functools.cache
def note_once(text: str) -> None:
    """As `note`, unless it was said before: all runs of a sweep say the same."""
    note(text)


def warn(text: str) -> None:
    """Says in one line, on stderr, what is wrong but stops nothing."""
    print(f"warning: {' '.join(text.split())}", file=sys.stderr, flush=True)


@functools.cache
def warn_once(text: str) -> None:
    """As `warn`, the first time that this process has this warning."""
    warn(text)


def waiting_for_input(share: float) -> str:
    """Returns a note on the share of the time spent waiting for input; nothing if it is small."""
    return f"  {share:.0%} waiting for input" if share > NOTICEABLE else ""


def format_seconds(seconds: float) -> str:
    """Formats a duration: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
