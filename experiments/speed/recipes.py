"""Does every recipe for ImageNet run?

Trains each preset of configs/imagenet.py for ten steps at its real sizes, but with a small batch,
on a set of ImageNet's shape, which is written first (`imagenet_shaped`). A second run of the same
preset is killed after a step and resumed. It must end with the same test loss. The test must count
every picture once.

Prints and writes, per preset: images per second of the ten steps, the largest memory of the
process, and the share of the time in which training waited for pictures. Also measures how many
pictures the host prepares per second. Files: recipes.csv, recipes.md and recipes_host.md in --out.
The same command goes on where it stopped.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from configs import imagenet
from experiments.common.table import Table
from experiments.speed import imagenet_shaped
from mnv2 import data
from mnv2.prepare import write_resized
from mnv2.pretrained import Preprocessing
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, write_json
from mnv2.runtime.layout import CHECKPOINTS, METRICS, RESULT
from mnv2.runtime.terminal import StatusLine
from mnv2.sweeps.plan import resolve
from mnv2.sweeps.workdir import read_result
from mnv2.training.config import from_config
from mnv2.training.setup import train_views

STEPS = 10
HOST_BATCHES = 6  # that are timed, after one that is not
SIDE = 256  # of the shorter sides of pictures that are prepared once
WANTED = 9000  # pictures per second of an accelerator, for which cores are counted

type Trained = tuple[str, int, int, float, float, float, int]  # the first fields of a Recipe


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


def command(preset: str, data_dir: Path, workdir: Path, batch: int) -> list[str]:
    """Returns the command that trains a preset for a few steps."""
    changes = {
        "data.dir": data_dir,
        "data.validation": 100,
        "batch_size": batch,
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
    start = [sys.executable, "-m", "mnv2.main", "--config", f"configs/imagenet.py:{preset}"]
    return [*start, "--workdir", str(workdir), *options]


def _memory(process: psutil.Process) -> float:
    """Returns the resident memory of a process and its children, in MB."""
    total = 0
    for one in (process, *process.children(recursive=True)):
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6


def train(arguments: list[str], log: Path) -> float:
    """Executes a run to its end; returns its largest memory. Raises UserError if it fails."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT)
        watched, most = psutil.Process(process.pid), 0.0
        while process.poll() is None:
            try:
                most = max(most, _memory(watched))
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
    if process.wait():
        raise UserError(f"a run failed, see {log}")
    return most


def train_and_kill(arguments: list[str], log: Path, folder: Path) -> None:
    """Executes a run until it has logged its sixth step and saved its fourth, and kills it."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            arguments, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            logged = (folder / METRICS).read_text() if (folder / METRICS).exists() else ""
            if '"step": 6' in logged and (folder / CHECKPOINTS / "4").exists():
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.05)
    if process.wait() != -signal.SIGKILL:
        raise UserError(f"the run ended before it could be killed, see {log}")


def measure(preset: str, dataset: data.Dataset, data_dir: Path, out: Path, batch: int) -> Trained:
    """Trains a preset twice, once with a kill; returns the first fields of its Recipe.

    Raises UserError if the results differ.
    """
    whole, killed = (out / "runs" / f"{preset}_{name}" for name in ("whole", "killed"))
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
    log = out / "runs" / f"{preset}.log"
    memory = train(command(preset, data_dir, whole, batch), log)
    result = read_result(whole / preset / "0" / RESULT)
    train_and_kill(command(preset, data_dir, killed, batch), log, killed / preset / "0")
    train(command(preset, data_dir, killed, batch), log)
    resumed = read_result(killed / preset / "0" / RESULT)
    if resumed["test"] != result["test"]:
        raise UserError(f"{preset}: resumed {resumed['test']}, uninterrupted {result['test']}")
    if result["test"]["examples"] != dataset.num_examples("test"):
        raise UserError(f"{preset}: the test counted {result['test']['examples']} pictures")
    chosen = imagenet.get_config(preset).data
    side = chosen.image_size
    tested = Preprocessing(chosen.evaluation).view_of((side, side), 3)
    return (
        preset,
        side,
        tested.size[0],
        result["images_per_second"],
        memory,
        100 * result["waiting_for_input"],
        int(result["test"]["examples"]),
    )


def time_host(preset: str, dataset: data.Dataset, batch: int = 64) -> float:
    """Measures how many pictures per second a core reads, decodes, crops and resizes."""
    config = resolve(imagenet.get_config(preset), preset)
    settings = from_config(config)
    side = settings.data.image_size or 0
    (view,) = train_views(settings, (side, side, 3))
    batches = data.train_batches(dataset, batch, seed=0, view=view, repeats=settings.data.repeats)
    next(batches)
    began = time.perf_counter()
    for _ in range(HOST_BATCHES):
        next(batches)
    rate = HOST_BATCHES * batch / (time.perf_counter() - began)
    return rate / len(os.sched_getaffinity(0))


def measured(
    presets: Sequence[str], dataset: data.Dataset, data_dir: Path, out: Path, batch: int
) -> Iterator[Recipe]:
    """Yields what was measured of each preset; what was measured before is read from `out`."""
    small = data_dir / "resized"
    write_resized(dataset, SIDE, small)
    resized = data.open_dataset(f"folder:{small}")
    line = StatusLine("recipes")
    for number, preset in enumerate(presets, start=1):
        line.say(f"{preset}, {number} of {len(presets)}")
        stored = out / "runs" / f"{preset}.json"
        how = {"batch": batch, "data_dir": str(data_dir.absolute())}
        found = read_json(stored, "remove it") if stored.exists() else {}
        if found.get("how") != how:
            rates = (time_host(preset, dataset), time_host(preset, resized))
            recipe = Recipe(*measure(preset, dataset, data_dir, out, batch), *rates)
            found = {"recipe": recipe._asdict(), "how": how}
            write_json(stored, found)
        yield Recipe(**found["recipe"])
    line.clear()


def main() -> None:
    parser = command_parser("experiments.speed.recipes", __doc__)
    parser.add_argument("--data_dir", type=Path, default=Path("runs/imagenet_shaped"))
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--batch", type=whole_number(), default=32, help="(default: 32)")
    quick = tuple(preset for preset in imagenet.RECIPES if preset != "resnet50")
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=tuple(imagenet.RECIPES),
        default=quick,
        help="(default: all but resnet50, which takes 18 minutes on two cores)",
    )
    arguments = parser.parse_args()
    dataset = imagenet_shaped.prepare(arguments.data_dir)
    where = (arguments.data_dir, arguments.out, arguments.batch)
    recipes = list(measured(arguments.presets, dataset, *where))
    Table(
        "recipes",
        ("preset", "train, px", "test, px", "images/s", "memory, MB", "waiting, %", "tested"),
        [
            (
                *(one.preset, one.size, one.test_size, f"{one.images_per_second:.1f}"),
                *(f"{one.memory:,.0f}", f"{one.waiting:.0f}", one.test_pictures),
            )
            for one in recipes
        ],
    ).write(arguments.out, recipes)
    Table(
        "recipes_host",
        ("preset", "pictures/s per core", "cores", "resized to 256", "cores"),
        [
            (
                *(one.preset, f"{one.per_core:,.0f}", f"{WANTED / one.per_core:.0f}"),
                *(f"{one.resized:,.0f}", f"{WANTED / one.resized:.0f}"),
            )
            for one in recipes
        ],
    ).write(arguments.out)
    print(f"\nin {arguments.out}: recipes.csv, recipes.md, recipes_host.md")


if __name__ == "__main__":
    run(main)
