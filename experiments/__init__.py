"""Commands that answer one question each: about the paper in paper/, about speed in speed/."""

import sys
from pathlib import Path

from mnv2.runtime.cli import silence_libraries

silence_libraries()  # this package consists of commands

if sys.argv[0] == "-m":  # while Python looks for a command
    _, _, old = sys.orig_argv[sys.orig_argv.index("-m") + 1].partition(".")
    for new in Path(__file__).parent.glob(f"*/{old}.py"):
        print(
            f"error: experiments.{old} is now experiments.{new.parent.name}.{old}", file=sys.stderr
        )
        sys.exit(2)
