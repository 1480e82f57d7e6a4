"""Kills runs at random moments and checks what is left: python -m tests.faults.kills

A small network with augmentation, dropout and averaged parameters is trained once undisturbed. Then
the run is repeated: SIGKILL ends its processes after a random time, and it is started again. This
is done until there were --kills of them. Every finished run must have the parameters, statistics
and averages of the undisturbed run, to the last bit, and no kill may lose a finished checkpoint.
The moments are drawn from --seed, which is printed.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from mnv2.runtime.layout import RESULT
from mnv2.runtime.packed_arrays import read_newest
from mnv2.runtime.terminal import StatusLine

STEPS, EVERY = 400, 20
COMMAND = (
    *(sys.executable, "-m", "mnv2.main", "--config=configs/v2_ablation.py:quick"),
    "--only=linear/0",
    "--config.model.width=0.1",
    "--config.model.dropout=0.3",
    "--config.ema_decay=0.9",
    "--config.data.train=pad_crop(4)|flip",
    "--config.data.validation=0",
    "--config.batch_size=16",
    f"--config.duration={STEPS} steps",
    f"--config.checkpoint_every={EVERY} steps",
    "--config.eval_every=0 steps",
)
FOLDER = "linear/0"  # the folder of the run in its workdir


def start(workdir: Path, more: Sequence[str] = ()) -> subprocess.Popen[bytes]:
    """Starts the run in a new process group. Its output goes to log.txt next to `workdir`."""
    with (workdir.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [*COMMAND, f"--workdir={workdir}", *more],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def kill_all(process: subprocess.Popen[Any]) -> None:
    """Kills a command and the copies that it has started, all at once."""
    every = [psutil.Process(process.pid)]
    every += every[0].children(recursive=True)
    for one in every:
        one.kill()
    psutil.wait_procs(every[1:], 10)


def newest(workdir: Path, folder: str = FOLDER) -> int:
    """Returns the step of a run's newest finished checkpoint; 0 if there is none."""
    names = [path.name for path in (workdir / folder / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def final_state(workdir: Path, folder: str = FOLDER) -> Any:
    """Reads the newest checkpoint of a run."""
    return read_newest(workdir / folder / "checkpoints")


def check_equal(state: Any, expected: Any, workdir: Path) -> None:
    """Raises UserError unless both states are the same to the last bit."""
    import jax

    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(expected), strict=True
    ):
        if not np.array_equal(ours, theirs):
            raise UserError(
                f"{workdir}: {jax.tree_util.keystr(path)} differs from the undisturbed run"
            )


def main() -> None:
    parser = command_parser("tests.faults.kills", __doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--longest", type=float, default=25, help="most seconds until a kill")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        began = time.perf_counter()
        if start(here / "undisturbed").wait():
            raise UserError((here / "log.txt").read_text())
        alone = time.perf_counter() - began
        expected = final_state(here / "undisturbed")
        progress = StatusLine("kills")
        kills, finished = 0, 0
        while kills < arguments.kills:
            workdir = here / f"run_{finished}"
            before = newest(workdir)
            process = start(workdir)
            try:
                process.wait(moments.uniform(0, arguments.longest))
            except subprocess.TimeoutExpired:
                kill_all(process)
                kills += 1
                process.wait()
                if newest(workdir) < before:
                    raise UserError(f"{workdir}: the checkpoint of step {before} is lost") from None
                progress.say(f"{kills}/{arguments.kills}, {finished} runs finished")
                continue
            if process.returncode or not (workdir / FOLDER / RESULT).exists():
                raise UserError((here / "log.txt").read_text())
            check_equal(final_state(workdir), expected, workdir)
            finished += 1
    progress.clear()
    if not finished:
        raise UserError(
            "no run finished: give more --kills, or a longer time before them (--longest)"
        )
    print(
        f"{kills} kills; {finished} runs of {STEPS} steps finished nevertheless, each with the "
        f"parameters of the undisturbed run to the last bit; no checkpoint was lost "
        f"(an undisturbed run takes {alone:.0f} s; kills came after 0 to {arguments.longest:g} s)"
    )


if __name__ == "__main__":
    run(main)
