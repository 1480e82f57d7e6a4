"""How a command begins, and how it ends: in one line and exit code 2 for bad input."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import logging

from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import EXIT_CODE, Stopped, compiling


def command_parser(module: str, description: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m module`; --help shows the module's docstring as it is written."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run(main: Callable[[], None]) -> None:
    """Runs a command's main function: a UserError is one line and exit code 2."""
    logging.set_verbosity(logging.ERROR)  # TensorFlow and Orbax have much to say
    try:
        main()
    except UserError as error:
        fail(str(error))
    except Stopped as stopped:
        print(f"\nstopped by {stopped}: the same command goes on there", file=sys.stderr)
        if compiling():
            leave(EXIT_CODE)
        sys.exit(EXIT_CODE)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)  # what a shell says of a process that SIGINT ended


def leave(code: int) -> NoReturn:
    """Ends the process at once, without waiting for what else is under way in it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fail(message: str) -> NoReturn:
    """Prints one line to stderr and exits with code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)
