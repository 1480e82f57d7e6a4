"""Signals runs, damages their files and fills their disk: python -m tests.faults.damage

Each round trains the small network of tests.faults.kills once per fault. The moments are random,
drawn from --seed, which is printed. The faults are:

signals     SIGTERM or SIGINT after a random time. The run must save and exit with code 75 within
            30 s
truncated   SIGKILL; then a random file of the newest checkpoint is cut short or removed
writers     several processes write one JSON file as fast as they can, until they are killed.
            Every reading must find a whole file. Each may leave the one file that it was writing,
            which the next run removes.
full disk   a disk without room for a second checkpoint. The run must end with one line of error,
            and the first checkpoint must be whole. Then room is made. (This needs root, for a file
            system in memory.)
not finite  a learning rate that overflows. The run must end with one line of error, without a
            result and without a checkpoint that is not finite

Then the run is started again until it finishes. Its parameters must be those of an undisturbed run,
to the last bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import UNFINISHED, write_json
from mnv2.runtime.interruption import EXIT_CODE
from mnv2.runtime.layout import RESULT
from tests.faults.kills import FOLDER, check_equal, final_state, newest, start

PATIENCE = 30  # seconds to save and exit after a signal
WRITERS = 4  # processes that write one file
EARLIEST, LATEST = 0.0, 25.0  # seconds until the fault


def signals(workdir: Path, moments: random.Random) -> str:
    """Sends up to three signals, each to a new process. Returns what happened."""
    happened = []
    for _ in range(3):
        process = start(workdir)
        try:
            process.wait(moments.uniform(EARLIEST, LATEST))
            break
        except subprocess.TimeoutExpired:
            number = moments.choice((signal.SIGTERM, signal.SIGINT))
        os.killpg(process.pid, number)
        sent = time.perf_counter()
        code = process.wait(PATIENCE)
        if code not in (EXIT_CODE, 0, -number):
            raise UserError(f"exit code {code} after {number.name}")
        seconds = time.perf_counter() - sent
        happened.append(
            f"{number.name} at step {newest(workdir)}: exit code {code} in {seconds:.1f} s"
        )
    return "; ".join(happened)


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
    size = moments.randrange(3600, 4500)
    if trouble := mount_small_disk(workdir, size):
        return f"skipped: {trouble}"
    process = start(workdir)
    code = process.wait()
    first = newest(workdir)
    if code != 2 or not first:
        raise UserError(f"exit code {code} on a full disk, newest checkpoint {first}")
    make_room(workdir)
    return f"{size} kB: exit code {code}, checkpoint of step {first} kept"


def mount_small_disk(folder: Path, size: int) -> str | None:
    """Mounts a disk of `size` kB; returns why, if that is not possible."""
    if os.geteuid() != 0:
        return "mounting a disk needs root"
    folder.mkdir(parents=True)
    mounted = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(folder)]
    failed = subprocess.run(mounted, capture_output=True, check=False).returncode
    return "no disk can be mounted here" if failed else None


def make_room(folder: Path) -> None:
    """Enlarges a disk that `mount_small_disk` has mounted."""
    subprocess.run(["mount", "-o", "remount,size=100m", str(folder)], check=True)


def not_finite(workdir: Path, moments: random.Random) -> str:
    """Starts two runs whose loss overflows. One stops there; the other skips and must stop, too."""
    happened = []
    for on_nan in ("stop", "skip"):
        place = workdir.with_name(f"{workdir.name}_{on_nan}")
        process = start(
            place,
            [
                "--config.optimization.learning_rate=1e30",
                "--config.optimization.warmup=0 steps",
                f"--config.on_nan={on_nan}",
                f"--config.checkpoint_every={moments.randrange(1, 9)} steps",
                f"--config.log_every={moments.randrange(1, 99)}",
            ],
        )
        code = process.wait()
        if code != 2 or (place / FOLDER / RESULT).exists():
            raise UserError(f"exit code {code} although the loss is not finite ({on_nan})")
        if newest(place):
            state = final_state(place)
            if not all(np.isfinite(array).all() for array in state.values()):
                raise UserError(f"{place} holds a checkpoint that is not finite")
        happened.append(f"{on_nan}: exit code 2, newest checkpoint {newest(place)}")
    return "; ".join(happened)


def writers(workdir: Path, moments: random.Random) -> str:
    """Lets processes write one file at the same time; returns how often it was read."""
    path = workdir / FOLDER / "shared.json"
    write_json(path, {"writer": [0] * 10_000})
    code = (
        "import sys; from pathlib import Path; from mnv2.runtime.files import write_json\n"
        "while True: write_json(Path(sys.argv[1]), {'writer': [int(sys.argv[2])] * 10_000})"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(which)])
        for which in range(WRITERS)
    ]
    try:
        end, readings, seen = time.monotonic() + moments.uniform(3, 6), 0, set()
        while time.monotonic() < end:
            numbers = json.loads(path.read_text())["writer"]
            if len(numbers) != 10_000 or len(set(numbers)) != 1:
                raise UserError(f"{path} is not what one of the writers wrote")
            readings, seen = readings + 1, seen | set(numbers)
            if any(process.poll() is not None for process in processes):
                raise UserError("a writer failed")
    finally:
        for process in processes:
            process.kill()
            process.wait()
    left = [one.name for one in path.parent.iterdir() if one != path]
    if len(left) > WRITERS or not all(name.endswith(UNFINISHED) for name in left):
        raise UserError(f"the writers left {', '.join(left)}")
    path.unlink()
    return (
        f"{readings} readings of a file with {len(seen & set(range(WRITERS)))} writers, all whole"
    )


FAULTS: dict[str, Callable[[Path, random.Random], str]] = {
    "signals": signals,
    "truncated": truncated,
    "writers": writers,
    "full disk": full_disk,
    "not finite": not_finite,
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
