"""How far are the runs? python -m mnv2.status WORKDIR

done      its test accuracy
running   in some process: its step, images/s, and the time still to go
stopped   begun, and in no process now: the command that began it goes on
failed    the last line of its error; the command that began it tries again
waiting   not begun

python -m mnv2.status runs/v2_ablation --every 10     again every ten seconds, until Ctrl-C
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from mnv2 import report
from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import check_positive
from mnv2.runtime.files import holder
from mnv2.runtime.throughput import format_seconds
from mnv2.sweeps.execute import FAILURE, SWEEP
from mnv2.training.loop import METRICS

CLEAR = "\033[H\033[2J"  # the terminal, before the table is shown again


class Status(NamedTuple):
    """One run."""

    name: str
    state: str
    detail: str


def statuses(workdir: Path) -> list[Status]:
    """Every run that the config of `workdir` names. Raises UserError if it is no workdir."""
    sweep = report.load(workdir)
    steps = json.loads((workdir / SWEEP).read_text()).get("steps", {})
    return [
        Status(f"{arm}/{seed}", *_state(workdir / arm / str(seed), sweep, arm, seed, steps))
        for arm, seed in sweep.runs()
    ]


def _state(
    folder: Path, sweep: report.Sweep, arm: str, seed: int, steps: dict[str, int]
) -> tuple[str, str]:
    if seed in sweep.results[arm]:
        return "done", f"{sweep.accuracies(arm)[seed]:.2f} %"
    process = holder(folder)
    line = _last_line(folder / METRICS)
    progress = f"step {line.get('step', 0)} of {steps.get(arm, '?')}"
    if process:
        rate = line.get("train/images_per_second")
        batch_size = sweep.config["batch_size"]
        if rate and arm in steps:
            left = (steps[arm] - line["step"]) * batch_size / rate
            progress += f", {rate:,.0f} images/s, {format_seconds(left)} left"
        return "running", f"{progress} ({process})"
    if (folder / FAILURE).exists():
        return "failed", (folder / FAILURE).read_text().splitlines()[-1]
    return ("stopped", progress) if line else ("waiting", "")


def _last_line(path: Path) -> dict[str, Any]:
    """The newest line of metrics.jsonl that tells of training; the last of a run may be cut."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    for line in reversed(lines):
        if line.endswith("\n") and "train/loss" in (values := json.loads(line)):
            return values
    return {}


def show(workdir: Path) -> None:
    """Prints the table, and how many there are of each."""
    rows = statuses(workdir)
    width = max(len(row.name) for row in rows)
    for row in rows:
        print(f"{row.name:{width}}  {row.state:8} {row.detail}")
    counts = {state: sum(row.state == state for row in rows) for state in dict.fromkeys(_STATES)}
    print(", ".join(f"{count} {state}" for state, count in counts.items() if count))


_STATES = ("done", "running", "stopped", "failed", "waiting")


def main() -> None:
    parser = command_parser("mnv2.status", __doc__)
    parser.add_argument("workdir", type=Path, metavar="WORKDIR")
    parser.add_argument("--every", type=float, help="seconds after which to show it again")
    arguments = parser.parse_args()
    if arguments.every is None:
        return show(arguments.workdir)
    check_positive(arguments.every, "--every")
    while True:
        print(CLEAR, end="")
        show(arguments.workdir)
        time.sleep(arguments.every)


if __name__ == "__main__":
    run(main)
