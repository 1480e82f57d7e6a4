"""How a command starts and ends: quietly, and after bad input with one line and exit code 2."""

import argparse
import atexit
import contextlib
import io
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from logging import CRITICAL, ERROR, getLogger
from typing import Any, NoReturn

from absl import logging

from mnv2.runtime.errors import Check, UserError, is_store_error, number, reason, whole
from mnv2.runtime.files import caches
from mnv2.runtime.interruption import EXIT_CODE, Stopped


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        fail(re.sub(r"^argument (\S+): must", r"\1 must", message) + "; see --help")


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """Returns the parser of `python -m module`; `--help` shows the module's docstring as it is."""
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def whole_number(low: int = 1) -> Callable[[str], int]:
    """Returns the type of an option that is a whole number, `low` or more."""
    return _option(int, whole(low), f"must be a whole number, {low} or more")


def real_number(low: float = 0) -> Callable[[str], float]:
    """Returns the type of an option that is a finite number, `low` or more."""
    return _option(float, number(low), f"must be a number, {low:g} or more")


def _option(convert: Callable[[str], Any], check: Check, wanted: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            return check("", convert(text))
        except (ValueError, UserError):
            raise argparse.ArgumentTypeError(f"{wanted}, got {text!r}") from None

    return parse


INTERRUPTED = 130  # the exit code of a process that SIGINT ended


def run(main: Callable[[], None]) -> None:
    """Runs a command's main function within `one_line_errors`."""
    with one_line_errors():
        main()


@contextlib.contextmanager
def one_line_errors(*, resumes: bool = False) -> Iterator[None]:
    """Prepares a command's process; a UserError becomes one line and exit code 2.

    `resumes` says that the same command goes on where it was interrupted.
    """
    silence_libraries()
    let_libraries_cache()
    print_everything()
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:
        leave_unread()
    except Exception as error:
        if not is_store_error(error):
            raise
        fail(f"cannot use Google Cloud Storage: {reason(error)}")
    except Stopped as stopped:
        print(f"\nstopped by {stopped}: the same command resumes there", file=sys.stderr)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        remedy = ": the same command resumes where it stopped" if resumes else ""
        print(f"\ninterrupted{remedy}", file=sys.stderr)
        sys.exit(INTERRUPTED)


def silence_libraries() -> None:
    """Keeps TensorFlow, which must not be imported yet, and others from printing what is no error.

    This changes the process's environment, so it is for commands and never for an import.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.set_verbosity(logging.ERROR)
    getLogger("tensorflow").setLevel(ERROR)  # TensorFlow Datasets uses what is deprecated
    getLogger("gcsfs").setLevel(CRITICAL)  # it prints what it also raises
    # Matplotlib's font lacks the letters of some scripts and draws boxes.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)


def let_libraries_cache() -> None:
    """Gives libraries a temporary cache if the user's cannot be written.

    When they are imported, TensorFlow Datasets would fail, and Matplotlib would warn again.
    """
    if caches() is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.environ.setdefault("TFDS_CACHE_DIR", folder)
        os.environ.setdefault("MPLCONFIGDIR", folder)


def print_everything() -> None:
    """Lets a terminal without the sign ± show a question mark, where Python would fail."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def leave(code: int) -> NoReturn:
    """Ends the process immediately, without waiting for other threads."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_unread() -> NoReturn:
    """Ends the process after a BrokenPipeError: nobody reads its output, as in `... | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    leave(141)  # the exit code of a process that SIGPIPE ended


def fail(message: str) -> NoReturn:
    """Prints one line to stderr and exits with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
