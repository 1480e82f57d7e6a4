"""Shows how far every run is: python -m mnv2.status WORKDIR

done      finished, with its test accuracy
running   a process is executing it: its step, images/s and the time left
stopped   begun, executed by no process: the command that began it resumes it
failed    with the last line of its error: the same command tries it again
damaged   a file of it cannot be read: which one, and what to do
waiting   not begun

python -m mnv2.status runs/v2_ablation --every 10    until Ctrl-C
"""

import time
from typing import Any, NamedTuple

from mnv2.runtime.cli import command_parser, real_number, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import AnyPath, damaged_line, given_folder, holder, matches, read_lines
from mnv2.runtime.layout import CHECKPOINTS, FAILURE, METRICS
from mnv2.runtime.terminal import format_seconds
from mnv2.sweeps.workdir import Sweep, failure_of, load

CLEAR = "\033[H\033[2J"  # clears the terminal before the table is shown again
STATES = ("done", "running", "stopped", "failed", "damaged", "waiting")


class Status(NamedTuple):
    """The state of one run: one of STATES, and what is known about it."""

    name: str
    state: str
    detail: str


def statuses(workdir: AnyPath) -> list[Status]:
    """Returns the status of every run of a sweep. Raises UserError if there is no sweep."""
    sweep = load(workdir)
    return [Status(f"{arm}/{seed}", *_state(sweep, arm, seed)) for arm, seed in sweep.runs()]


def _state(sweep: Sweep, arm: str, seed: int) -> tuple[str, str]:
    if seed in sweep.results[arm]:
        return "done", f"{sweep.accuracies(arm)[seed]:.2f} %"
    if reason := sweep.damaged.get(f"{arm}/{seed}"):
        return "damaged", reason
    folder = sweep.workdir / arm / str(seed)
    process = holder(folder)
    try:
        line = _last_training_line(folder / METRICS)
    except UserError as error:
        return "damaged", str(error)
    names = [path.name for path in matches(folder / CHECKPOINTS, "[0-9]*")]
    saved = max((int(name) for name in names if name.isdecimal()), default=0)
    step = max(saved, line.get("step", 0))  # a signal saves a run before its next line
    progress = f"step {step} of {sweep.steps.get(arm, '?')}"
    if process:
        rate = line.get("train/images_per_second")
        if rate and arm in sweep.steps:
            left = (sweep.steps[arm] - step) * sweep.value(arm, "batch_size") / rate
            progress += f", {rate:,.0f} images/s, {format_seconds(left)} left"
        return "running", f"{progress} ({process})"
    if failure := failure_of(folder):
        return "failed", failure
    return ("stopped", progress) if step else ("waiting", "")


def _last_training_line(path: AnyPath) -> dict[str, Any]:
    """Returns the newest line about training. Raises UserError for a damaged file."""
    for number, values in reversed(list(enumerate(read_lines(path), start=1))):
        if "train/loss" in values or "train/images_per_second" in values:
            step, rate = values.get("step"), values.get("train/images_per_second", 0)
            if not isinstance(step, int) or not isinstance(rate, int | float):
                raise damaged_line(path, number)
            return values
    return {}


def show(workdir: AnyPath) -> None:
    """Prints the status of every run, and the number of runs in each state."""
    found = statuses(workdir)
    width = max(len(status.name) for status in found)
    for status in found:
        print(f"{status.name:{width}}  {status.state:8} {status.detail}")
    counts = {state: sum(status.state == state for status in found) for state in STATES}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))
    if failed := [status.name for status in found if status.state == "failed"]:
        print(f"why, with any traceback: {workdir / failed[0] / FAILURE}")


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


if __name__ == "__main__":
    run(main)
