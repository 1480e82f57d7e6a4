"""Shows how far every run is: python -m mnv2.status WORKDIR

done      finished, with its test accuracy
running   a process is executing it: its step, images/s and the time left
stopped   begun, and not executed by any process: the command that began it resumes it
failed    with the last line of its error: the command that began it tries again
damaged   a file of it cannot be read: which one, and what to do
waiting   not begun

python -m mnv2.status runs/v2_ablation --every 10     shows it every ten seconds, until Ctrl-C
"""

import time

from mnv2.runtime.cli import command_parser, real_number, run
from mnv2.runtime.files import AnyPath, given_folder

CLEAR = "\033[H\033[2J"  # clears the terminal before the table is shown again


def show(workdir: AnyPath) -> None:
    """Prints the status of every run, and the number of runs in each state."""
    from mnv2.sweeps.status import STATES, statuses  # imports JAX

    found = statuses(workdir)
    width = max(len(one.name) for one in found)
    for one in found:
        print(f"{one.name:{width}}  {one.state:8} {one.detail}")
    counts = {state: sum(one.state == state for one in found) for state in STATES}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))


def main() -> None:
    parser = command_parser("mnv2.status", __doc__)
    parser.add_argument("workdir", metavar="WORKDIR")
    parser.add_argument(
        "--every",
        type=real_number(0.1),
        metavar="SECONDS",
        help="show it again after this many seconds",
    )
    arguments = parser.parse_args()
    workdir = given_folder(arguments.workdir, "WORKDIR")
    if arguments.every is None:
        return show(workdir)
    while True:
        print(CLEAR, end="")
        show(workdir)
        time.sleep(arguments.every)


def command() -> None:
    run(main)


if __name__ == "__main__":
    command()
