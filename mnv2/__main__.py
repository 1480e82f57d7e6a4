"""Runs a command by its verb: `mnv2 train --config ...` is `python -m mnv2.main --config ...`."""

import runpy
import sys

from mnv2.runtime.cli import fail
from mnv2.runtime.errors import UserError, check_choice

COMMANDS = {
    "train": ("mnv2.main", "train the arms of a config and report on them"),
    "submit": ("mnv2.submit", "submit the runs of a config as jobs of SLURM"),
    "status": ("mnv2.status", "show how far every run is"),
    "report": ("mnv2.report", "write the report of the finished runs"),
    "predict": ("mnv2.predict", "classify pictures"),
    "evaluate": ("mnv2.evaluate", "evaluate weights on a data set"),
    "convert": ("mnv2.convert", "convert weights from one format to another"),
    "export": ("mnv2.export", "export weights for phones, browsers and servers"),
    "prepare": ("mnv2.prepare", "download and prepare a data set"),
}


def main() -> None:
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help"):
        print("usage: mnv2 COMMAND [ARGUMENTS]; each command has --help\n")
        for name, (module, purpose) in COMMANDS.items():
            print(f"  {name:9} {purpose} (python -m {module})")
        return
    try:
        check_choice(verb, COMMANDS, "command")
    except UserError as error:
        fail(str(error))
    del sys.argv[1]
    runpy.run_module(COMMANDS[verb][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
