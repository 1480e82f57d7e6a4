"""Kills the copies of a sweep's command and the process that started them.

    python -m tests.faults.copies

Two arms with two seeds of a small network are trained once undisturbed, by one process with one
thread. Then the sweep is repeated with two copies, and disturbed after random times, which are
drawn from --seed. A disturbance is one of

copy       SIGKILL to a copy. The sweep must go on.
parent     SIGKILL to the process that started the copies. They must end within 30 s.
signal     SIGTERM or Ctrl-C to it. All must save and end within 30 s, with exit code 75.
Ctrl-C x2  Ctrl-C twice. All must end within 30 s.

If the process has ended, the sweep is started again, until there were --faults disturbances.
In every finished sweep all parameters must be those of the undisturbed runs, to the last bit; each
step must be in the metrics once; and no checkpoint may be lost.
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_lines
from mnv2.runtime.interruption import EXIT_CODE
from mnv2.runtime.layout import METRICS, RESULT
from mnv2.runtime.terminal import StatusLine
from tests.faults.kills import COMMAND, check_equal, final_state, newest

PATIENCE = 30.0  # seconds in which all processes must end
RUNS = [f"{arm}/{seed}" for arm in ("linear", "relu6") for seed in (0, 1)]
SWEEP = [word for word in COMMAND if not word.startswith("--only")]
IN_COPIES = ("--parallel=2", "--threads=1")
GIVEN_UP = ("second time", "all processes died")  # after so many kills a command may end
FAULTS = ("copy", "copy", "parent", "signal", "Ctrl-C x2")


def start(workdir: Path, *more: str) -> subprocess.Popen[bytes]:
    """Starts the sweep in a new session. Its output goes to log.txt next to `workdir`."""
    with (workdir.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*SWEEP, "--only=linear,relu6", f"--workdir={workdir}", *more],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def words(folder: Path) -> str:
    """Returns what all sweeps in a folder have printed."""
    return (folder / "log.txt").read_text()


def copies_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Returns the copies that are alive."""
    try:
        return psutil.Process(process.pid).children()
    except psutil.Error:
        return []


def disturb(process: subprocess.Popen[bytes], fault: str, moments: random.Random) -> bool:
    """Disturbs a sweep that runs; returns whether it was there to be disturbed.

    Raises UserError if a process does not end in time.
    """
    copies = copies_of(process)
    if fault == "copy":
        if copies:
            moments.choice(copies).kill()
        return bool(copies)
    if fault == "parent":
        process.kill()
    elif fault == "signal":
        process.send_signal(moments.choice((signal.SIGTERM, signal.SIGINT)))
    else:
        process.send_signal(signal.SIGINT)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(signal.SIGINT)
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        raise UserError(f"{fault}: the process did not end in {PATIENCE:g} s") from None
    _, left = psutil.wait_procs(copies, PATIENCE)
    if left:
        raise UserError(f"{fault}: the copies {[one.pid for one in left]} did not end")
    if fault == "signal" and copies and code not in (EXIT_CODE, 0):
        raise UserError(f"{fault}: exit code {code}")
    return True


def check(workdir: Path, expected: dict[str, object]) -> None:
    """Raises UserError unless a finished sweep is as if it had not been disturbed."""
    for name in RUNS:
        if not (workdir / name / RESULT).exists():
            raise UserError(f"{workdir / name} has no result")
        check_equal(final_state(workdir, name), expected[name], workdir / name)
        lines = read_lines(workdir / name / METRICS)
        steps = Counter(line["step"] for line in lines if "train/loss" in line)
        if max(steps.values()) > 1 or sum("test/loss" in line for line in lines) != 1:
            raise UserError(f"{workdir / name / METRICS} has a step twice")


def main() -> None:
    parser = command_parser("tests.faults.copies", __doc__)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--longest", type=float, default=25, help="most seconds until a fault")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    moments = random.Random(arguments.seed)
    happened: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if start(here / "undisturbed", "--parallel=1", "--threads=1").wait():
            raise UserError(words(here))
        expected = {name: final_state(here / "undisturbed", name) for name in RUNS}
        line = StatusLine("copies")
        finished = code = 0
        while happened.total() < arguments.faults or code:  # the last sweep is not disturbed
            workdir = here / f"sweep_{finished}"
            process, disturbed = start(workdir, *IN_COPIES), happened.total() < arguments.faults
            while process.poll() is None and happened.total() < arguments.faults:
                before = {name: newest(workdir, name) for name in RUNS}
                try:
                    process.wait(moments.uniform(0, arguments.longest))
                except subprocess.TimeoutExpired:
                    fault = moments.choice(FAULTS)
                    happened[fault] += disturb(process, fault, moments)
                for name in RUNS:
                    if newest(workdir, name) < before[name]:
                        raise UserError(f"{workdir / name}: step {before[name]} is lost")
                line.say(f"{happened.total()}/{arguments.faults}, {finished} sweeps finished")
            code = process.wait()
            if code == 0:
                check(workdir, expected)
                finished += 1
            elif not disturbed or (code == 2 and not any(x in words(here) for x in GIVEN_UP)):
                raise UserError(words(here))
        line.clear()
    what = ", ".join(f"{count} x {fault}" for fault, count in happened.items())
    print(
        f"{what}; {finished} sweeps of {len(RUNS)} runs finished nevertheless, each with the "
        f"parameters of undisturbed runs to the last bit; no process was left (on {os.cpu_count()} "
        "cores)"
    )


if __name__ == "__main__":
    run(main)
