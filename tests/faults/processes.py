"""Trains one run in several processes: python -m tests.faults.processes

The same small network is trained for 50 steps in one process with one device, in one process with
four devices, and in two processes with two devices each, which communicate over gloo. The
parameters must be the same, and every evaluation must count each example once. The same is done
with a folder of pictures, of which each process reads a part.

Then one of two processes is sent SIGTERM: both must save and exit with code 75. Then one of two is
killed: the other must end with a message within two minutes. When both are started again, they must
resume and finish. Then the newest checkpoint is damaged: both must resume from the one before.

All is in float64, where rounding does not matter. In float32 the first steps of a fresh network
multiply any rounding error, on any number of devices, until no comparison is possible.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from PIL import Image

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import EXIT_CODE
from mnv2.runtime.layout import RESULT
from mnv2.runtime.packed_arrays import read_newest
from tests.faults.kills import kill_all

FOLDER = "linear/0"
COMMAND = (
    *(sys.executable, "-m", "mnv2.main", "--config=configs/v2_ablation.py:quick"),
    "--only=linear/0",
    "--config.model.width=0.1",
    "--config.model.dtype=float64",
    "--config.optimization.learning_rate=5e-4",
    "--config.ema_decay=0.9",
    "--config.data.train=pad_crop(4)|flip",
    "--config.data.validation=1000",
    "--config.batch_size=32",
    "--config.eval_batch_size=999",
    "--config.checkpoint_every=20 steps",
    "--config.eval_every=25 steps",
    "--noreport",
)
PATIENCE = 120  # seconds in which a process must notice that another one has died


def free_port() -> int:
    """Returns a free port of this machine."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    workdir: Path, processes: int, devices: int, steps: int, more: Sequence[str] = ()
) -> list[subprocess.Popen[str]]:
    """Starts the processes of one run, each with `devices` devices and the flags `more`."""
    environment = {
        **os.environ,
        "GLIBC_TUNABLES": "",
        "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [*COMMAND, f"--config.duration={steps} steps", f"--workdir={workdir}", *more]
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    together = [
        [address, f"--num_processes={processes}", f"--process_id={which}"]
        for which in range(processes)
    ]
    return [
        subprocess.Popen(
            [*command, *(flags if processes > 1 else ())],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for flags in together
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Waits for processes, and returns their output. Raises UserError if one has failed."""
    printed = [process.communicate()[0] for process in processes]
    for process, text in zip(processes, printed, strict=True):
        if process.returncode:
            raise UserError(f"exit code {process.returncode}: {text[-1000:]}")
    return printed


def result(workdir: Path) -> tuple[Any, str]:
    """Returns the final parameters, statistics and averages, and the text of metrics.jsonl."""
    state = unflatten_dict(read_newest(workdir / FOLDER / "checkpoints"), sep="/")
    kept = {name: state[name] for name in ("params", "batch_stats", "ema")}
    return jax.device_get(kept), (workdir / FOLDER / "metrics.jsonl").read_text()


def difference(one: Any, other: Any) -> float:
    """Returns the largest difference of two trees, relative to the largest value of its array."""
    return max(
        float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-3))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def pictures(folder: Path) -> Path:
    """Writes gray pictures of 10 classes: of each 40 for training and 10 for testing."""
    random = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for label in range(10):
            place = folder / split / f"class_{label}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (28, 28)).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def check_layouts(folder: Path, steps: int, sizes: set[int], more: Sequence[str] = ()) -> None:
    """Trains with each layout of processes and devices, and the flags `more`.

    Raises UserError unless they agree, and the evaluations have the `sizes`.
    """
    jax.config.update("jax_enable_x64", True)
    expected, lines = None, 0
    for processes, devices in ((1, 1), (1, 4), (2, 2)):
        workdir = folder / f"{processes}x{devices}"
        began = time.perf_counter()
        finish(start(workdir, processes, devices, steps, more))
        state, metrics = result(workdir)
        if expected is None:
            expected, lines = state, len(metrics.splitlines())
        apart = difference(expected, state)
        examples = {
            int(value)
            for line in map(json.loads, metrics.splitlines())
            for name, value in line.items()
            if name in ("validation/examples", "test/examples")
        }
        print(
            f"{processes} process{'es' * (processes > 1)} x {devices} devices: {steps} steps, "
            f"difference to 1 x 1 {apart:.1e}, evaluations of {sorted(examples)} examples, "
            f"{len(metrics.splitlines())} lines of metrics, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        if apart > np.finfo(np.float32).eps or examples != sizes:
            raise UserError(f"{workdir} differs from the result of one device")
        if len(metrics.splitlines()) != lines:
            raise UserError(f"{workdir}: metrics were not written exactly once")


def last_words(text: str) -> str:
    """Returns the line that says why a process ended, written by this project or by JAX."""
    said = ("error: ", "stopped by ", "Terminating process")
    lines = [line for line in text.splitlines() if any(words in line for words in said)]
    return lines[-1] if lines else text.strip()[-300:]


def start_two(workdir: Path, steps: int) -> list[subprocess.Popen[str]]:
    """Starts two processes of one run, and waits for its first checkpoint."""
    processes = start(workdir, 2, 1, steps)
    while not list(workdir.glob(f"{FOLDER}/checkpoints/[0-9]*")):
        if processes[0].poll() is not None:
            raise UserError(processes[0].communicate()[0][-1000:])
        time.sleep(0.2)
    return processes


def check_signal(workdir: Path, steps: int) -> None:
    """Sends SIGTERM to the second of two processes. Raises UserError unless both save and end."""
    processes = start_two(workdir, steps)
    processes[1].send_signal(signal.SIGTERM)
    sent = time.perf_counter()
    for process in processes:
        text, _ = process.communicate(timeout=PATIENCE)
        print(f"exit code {process.returncode}: {last_words(text)}", flush=True)
        if process.returncode != EXIT_CODE:
            raise UserError(f"exit code {process.returncode} after SIGTERM to one of two processes")
    print(f"  both {time.perf_counter() - sent:.1f} s after SIGTERM to one of them", flush=True)


def check_death(workdir: Path, victim: int, steps: int) -> None:
    """Kills one of two processes. Raises UserError unless the other ends and a restart finishes."""
    processes = start_two(workdir, steps)
    kill_all(processes[victim])
    killed = time.perf_counter()
    other = processes[1 - victim]
    try:
        text, _ = other.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        other.kill()
        raise UserError(f"process {1 - victim} did not notice that the other one died") from None
    processes[victim].communicate()
    print(
        f"process {victim} killed; the other ended {time.perf_counter() - killed:.1f} s later, "
        f"exit code {other.returncode}: {last_words(text)}",
        flush=True,
    )
    finish(start(workdir, 2, 1, steps))
    _, metrics = result(workdir)
    print(f"  started again, both finish: {metrics.splitlines()[-1]}", flush=True)


def check_damage(workdir: Path, steps: int) -> None:
    """Damages the newest of two checkpoints. Raises UserError unless both processes use the other.

    Both must end as before.
    """
    finish(start(workdir, 2, 1, steps))
    expected, _ = result(workdir)
    checkpoints = workdir / FOLDER / "checkpoints"
    newest = max(int(path.name) for path in checkpoints.glob("[0-9]*"))
    victim = max((checkpoints / str(newest)).rglob("*"), key=lambda path: path.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:1000])
    (workdir / FOLDER / RESULT).unlink()
    first, second = finish(start(workdir, 2, 1, steps))
    (said,) = [line for line in first.splitlines() if "is damaged and was moved" in line]
    if "is damaged" in second:
        raise UserError(f"the second process decided, too: {second[-1000:]}")
    state, _ = result(workdir)
    if (apart := difference(expected, state)) > np.finfo(np.float32).eps:
        raise UserError(f"{workdir} differs by {apart:.1e} after it resumed from the other one")
    print(f"{said[:100]}...\n  both resumed there; difference {apart:.1e}", flush=True)


def main() -> None:
    parser = command_parser("tests.faults.processes", __doc__)
    parser.add_argument("--steps", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check_layouts(Path(folder), arguments.steps, {1000, 10000})
        of_pictures = f"--config.data.name=folder:{pictures(Path(folder) / 'pictures')}"
        more = [of_pictures, "--config.data.image_size=28", "--config.data.validation=80"]
        check_layouts(Path(folder) / "on_disk", arguments.steps, {80, 100}, more)
        check_signal(Path(folder) / "signal", steps=200)
        for victim in (1, 0):
            check_death(Path(folder) / f"death_of_{victim}", victim, steps=60)
        check_damage(Path(folder) / "damage", steps=60)


if __name__ == "__main__":
    run(main)
