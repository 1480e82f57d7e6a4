"""The options that several experiments have."""

import argparse
from pathlib import Path

from mnv2.runtime.cli import command_parser, real_number, whole_number

OPTIONS = {
    "rounds": (whole_number(), "turns of each"),
    "seconds": (real_number(), "least length of a turn"),
    "steps": (whole_number(), "training steps of each run"),
    "seeds": (whole_number(), "runs of each arm"),
    "draws": (whole_number(), "random matrices for each n"),
    "pairs": (whole_number(), "pairs of blocks, with a checkpoint and without"),
}


def experiment_parser(
    file: str, description: str | None, folder: str = "out", /, **defaults: float
) -> argparse.ArgumentParser:
    """Returns the parser of the experiment in `file`, with an option for the folder it writes to.

    `folder` is the name of this option, whose default is runs/NAME. `defaults` has the other
    options, of OPTIONS.
    """
    path = Path(file)
    parser = command_parser(f"experiments.{path.parent.name}.{path.stem}", description)
    for name, value in defaults.items():
        convert, text = OPTIONS[name]
        help_text = f"{text} (default: {value})"
        parser.add_argument(f"--{name}", type=convert, default=value, help=help_text)
    default = Path("runs") / path.stem
    help_text = f"what is written (default: {default})"
    parser.add_argument(f"--{folder}", type=Path, default=default, help=help_text)
    return parser
