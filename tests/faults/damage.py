"""Damages the files of runs and fills their disk: python -m tests.faults.damage

Each round trains the small network of tests.faults.kills once per fault. The moments are random,
drawn from --seed, which is printed. The faults are:

truncated   SIGKILL; then a random file of the newest checkpoint is cut short or removed
full disk   a disk without room for a second checkpoint. The run must end with one line of error,
            and the first checkpoint must be whole. Then room is made. (This needs root, for a file
            system in memory.)

Then the run is started again until it finishes. Its parameters must be those of an undisturbed run,
to the last bit.
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from tests.faults.kills import FOLDER, check_equal, final_state, newest, start


def truncated(workdir: Path, moments: random.Random) -> str:
    """Kills a run with two checkpoints, and damages a file of the newer one."""
    process = start(workdir)
    checkpoints = workdir / FOLDER / "checkpoints"
    while len([p for p in checkpoints.glob("*") if p.name.isdigit()]) < 2:
        if process.poll() is not None:
            raise UserError(f"{workdir} ended with {process.returncode}")
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    step = newest(workdir)
    files = sorted(p for p in (checkpoints / str(step)).rglob("*") if p.is_file())
    victim = moments.choice([p for p in files if p.stat().st_size])
    name = victim.relative_to(checkpoints)
    if moments.random() < 0.3:
        victim.unlink()
        return f"{name} removed"
    size = victim.stat().st_size
    left = moments.randrange(size)
    with victim.open("r+b") as file:
        file.truncate(left)
    return f"{name} cut from {size} to {left} bytes"


def full_disk(workdir: Path, moments: random.Random) -> str:
    """Trains on a disk with room for one checkpoint; then makes room for all."""
    if os.geteuid() != 0:
        return "skipped: mounting a disk needs root"
    size = moments.randrange(3600, 4500)
    workdir.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(workdir)]
    if subprocess.run(mounted, capture_output=True, check=False).returncode:
        return "skipped: no disk can be mounted here"
    code = start(workdir).wait()
    first = newest(workdir)
    if code != 2 or not first:
        raise UserError(f"exit code {code} on a full disk, newest checkpoint {first}")
    subprocess.run(["mount", "-o", "remount,size=100m", str(workdir)], check=True)
    return f"{size} kB: exit code {code}, checkpoint of step {first} kept"


FAULTS: dict[str, Callable[[Path, random.Random], str]] = {
    "truncated": truncated,
    "full disk": full_disk,
}


def main() -> None:
    parser = command_parser("tests.faults.damage", __doc__)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each fault")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if start(here / "undisturbed").wait():
            raise UserError((here / "log.txt").read_text())
        expected = final_state(here / "undisturbed")
        for number in range(arguments.rounds):
            for name, fault in FAULTS.items():
                workdir = here / f"{name.replace(' ', '_')}_{number}"
                try:
                    happened = fault(workdir, moments)
                    if start(workdir).wait():
                        raise UserError(f"{name}, {happened}: {(here / 'log.txt').read_text()}")
                    check_equal(final_state(workdir), expected, workdir)
                finally:
                    subprocess.run(["umount", str(workdir)], capture_output=True, check=False)
                print(f"{name:9}  {happened}; finished as if undisturbed", flush=True)


if __name__ == "__main__":
    run(main)
