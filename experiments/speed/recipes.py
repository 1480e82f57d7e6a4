"""Does every recipe for ImageNet run?

Trains each preset of configs/imagenet.py for ten steps at its real sizes, but with a small batch,
on a set of ImageNet's shape, which is written first (`imagenet_shaped`). A second run of the same
preset is killed after a step and resumed. It must end with the same test loss. The test must count
every picture once.

Prints and writes, per preset: images per second of the ten steps, the largest memory of the
process, and the share of the time in which training waited for pictures. Also measures how many
pictures the host prepares per second. The same command goes on where it stopped.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from configs import imagenet
from experiments.common.experiment import Table, experiment_parser, run
from experiments.speed import imagenet_shaped
from mnv2 import data
from mnv2.prepare import write_resized
from mnv2.pretrained import Preprocessing
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, write_json
from mnv2.runtime.layout import CHECKPOINTS, METRICS, RESULT
from mnv2.runtime.terminal import StatusLine
from mnv2.sweeps.plan import resolve
from mnv2.sweeps.workdir import read_result
from mnv2.training.config import from_config
from mnv2.training.setup import train_view

STEPS, BATCH = 10, 32
HOST_BATCHES = 6  # that are timed, after one that is not
SIDE = 256  # of the shorter sides of pictures that are prepared once
WANTED = 9000  # pictures per second of an accelerator, for which cores are counted


class Recipe(NamedTuple):
    """What was measured of a preset. Memory is in MB, waiting in per cent of the time."""

    preset: str
    size: int
    test_size: int
    images_per_second: float
    memory: float
    waiting: float
    test_pictures: int
    per_core: float  # pictures per second that a core prepares for training
    resized: float  # the same of pictures with shorter sides of SIDE pixels


def command(preset: str, data_dir: Path, workdir: Path) -> list[str]:
    """Returns the command that trains a preset for a few steps."""
    changes = {
        "data.dir": data_dir,
        "data.validation": 100,
        "batch_size": BATCH,
        "eval_batch_size": 100,
        "duration": f"{STEPS} steps",
        "eval_every": "4 steps",
        "checkpoint_every": "4 steps",
        "log_every": 1,
        "optimization.warmup": "2 steps",
        "optimization.rate_every": "1 steps",
        "model.dtype": "float32",
    }
    options = [f"--config.{name}={value}" for name, value in changes.items()]
    start = (sys.executable, "-m", "mnv2.main", "--config", f"configs/imagenet.py:{preset}")
    return [*start, "--workdir", str(workdir), *options]


def execute(arguments: list[str], log: Path, killed: Callable[[], bool] | None = None) -> float:
    """Executes a run to its end, or kills it when `killed` says so; returns its largest memory.

    That is in MB, of the process and its children. Raises UserError if the run fails, or ends
    before it is killed.
    """
    most = 0.0
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=bool(killed)
        )  # otherwise a signal for this command is one for the run as well
        watched = psutil.Process(process.pid)
        try:
            while process.poll() is None and not (killed and killed()):
                with contextlib.suppress(psutil.NoSuchProcess):
                    family = (watched, *watched.children(recursive=True))
                    most = max(most, sum(one.memory_info().rss for one in family) / 1e6)
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL) if killed else process.kill()
    if process.wait() != (-signal.SIGKILL if killed else 0):
        raise UserError(f"a run failed{' or could not be killed' if killed else ''}, see {log}")
    return most


def train(preset: str, data_dir: Path, out: Path) -> tuple[dict[str, Any], float]:
    """Trains a preset twice, once with a kill; returns its result, and its memory in MB.

    The kill is after the sixth step, when the checkpoint of the fourth is saved. Raises UserError
    if the results differ, and unless the test counts every picture.
    """
    whole, again = (out / "runs" / f"{preset}_{name}" for name in ("whole", "killed"))
    for folder in (whole, again):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
    log, interrupted = out / "runs" / f"{preset}.log", again / preset / "0"

    def is_within() -> bool:
        if not (interrupted / CHECKPOINTS / "4").exists():
            return False
        return '"step": 6' in (interrupted / METRICS).read_text(encoding="utf-8")

    memory = execute(command(preset, data_dir, whole), log)
    execute(command(preset, data_dir, again), log, is_within)
    execute(command(preset, data_dir, again), log)
    result, resumed = (read_result(folder / preset / "0" / RESULT) for folder in (whole, again))
    if resumed["test"] != result["test"]:
        raise UserError(f"{preset}: resumed {resumed['test']}, uninterrupted {result['test']}")
    if result["test"]["examples"] != imagenet_shaped.TEST:
        raise UserError(f"{preset}: the test counted {result['test']['examples']} pictures")
    return result, memory


def time_host(preset: str, dataset: data.Dataset, batch: int = 64) -> float:
    """Measures how many pictures per second a core reads, decodes, crops and resizes."""
    settings = from_config(resolve(imagenet.get_config(preset), preset))
    side = settings.data.image_size or 0
    view = train_view(settings, (side, side, 3))
    batches = data.train_batches(dataset, batch, seed=0, view=view, repeats=settings.data.repeats)
    next(batches)
    began = time.perf_counter()
    for _ in range(HOST_BATCHES):
        next(batches)
    rate = HOST_BATCHES * batch / (time.perf_counter() - began)
    return rate / len(os.sched_getaffinity(0))


def measure(preset: str, dataset: data.Dataset, data_dir: Path, out: Path) -> Recipe:
    write_resized(dataset, SIDE, data_dir / "resized")  # if need be
    resized = data.open_dataset(f"folder:{data_dir / 'resized'}")
    rates = (time_host(preset, dataset), time_host(preset, resized))
    result, memory = train(preset, data_dir, out)
    chosen = imagenet.get_config(preset).data
    side = chosen.image_size
    tested = Preprocessing(chosen.evaluation).view_of((side, side), 3)
    waiting, count = 100 * result["waiting_for_input"], int(result["test"]["examples"])
    speed = result["images_per_second"]
    return Recipe(preset, side, tested.size[0], speed, memory, waiting, count, *rates)


def main() -> None:
    parser = experiment_parser(__file__, __doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("runs/imagenet_shaped"))
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=tuple(imagenet.RECIPES),
        default=tuple(preset for preset in imagenet.RECIPES if preset != "resnet50"),
        help="(default: all but resnet50, which takes 18 minutes on two cores)",
    )
    arguments = parser.parse_args()
    dataset = imagenet_shaped.prepare(arguments.data_dir)
    recipes, line = [], StatusLine("recipes")
    for number, preset in enumerate(arguments.presets, start=1):
        line.say(f"{preset}, {number} of {len(arguments.presets)}")
        stored = arguments.out / f"{preset}.json"
        if not stored.exists():
            found = measure(preset, dataset, arguments.data_dir, arguments.out)
            write_json(stored, found._asdict())
        recipes.append(Recipe(**read_json(stored, "remove it")))
    line.clear()
    header = ("preset", "train, px", "test, px", "images/s", "memory, MB", "waiting, %", "tested")
    header_of_host = ("preset", "pictures/s per core", "cores", f"resized to {SIDE}", "cores")
    lines, lines_of_host = [], []
    for preset, side, tested, speed, memory, waiting, count, *rates in recipes:
        measured = (f"{speed:.1f}", f"{memory:,.0f}", f"{waiting:.0f}", count)
        lines.append((preset, side, tested, *measured))
        cells = [cell for rate in rates for cell in (f"{rate:,.0f}", f"{WANTED / rate:.0f}")]
        lines_of_host.append((preset, *cells))
    Table("recipes", header, lines).write(arguments.out, recipes)
    Table("recipes_host", header_of_host, lines_of_host).write(arguments.out)
    print(f"\nin {arguments.out}: recipes.csv, recipes.md, recipes_host.md")


if __name__ == "__main__":
    run(main)
