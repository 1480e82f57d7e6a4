"""What do 8 bits cost, by block?

Takes every finished run of a sweep on Fashion-MNIST, exports it in float32 and in 8 bits, and
evaluates each file on the whole test split, in the runtime that a phone or a server uses:

    LiteRT, float       the same as in JAX
    LiteRT, channel     8 bits, one scale per output channel of a kernel
    LiteRT, tensor      8 bits, one scale per kernel
    ONNX, channel       8 bits in ONNX Runtime, one scale per output channel

Nothing is trained again: the ranges of activations are those of --pictures training pictures.
Prints and writes, per arm, what 8 bits cost in points: mean and 95 % interval over seeds, paired
with the float32 file of the same seed. Files: quantization.csv, .md and .png in --out. The same
command goes on where it stopped.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.figure
import numpy as np

from experiments.common.table import Table
from mnv2 import data, pretrained
from mnv2.deployment import pictures
from mnv2.deployment.exported import open_exported
from mnv2.deployment.formats import content
from mnv2.deployment.litert import to_litert, with_description
from mnv2.deployment.program import Program, program_of
from mnv2.deployment.quantization import quantize_litert
from mnv2.runtime.cli import command_parser, run, whole_number
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, write_json
from mnv2.runtime.terminal import StatusLine
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import Sweep, load

DATA = "fashion_mnist"
BATCH = 100
FLOAT = "LiteRT, float"

# The test accuracy of each form, in per cent, by arm and seed.
type Runs = dict[tuple[str, int], dict[str, float]]
type Write = Callable[[Program, Sequence[np.ndarray]], bytes]


def _per_tensor(program: Program, ranges: Sequence[np.ndarray]) -> bytes:
    quantized = quantize_litert(to_litert(program), ranges, per_channel=False)
    return with_description(quantized, program.description)


FORMS: Mapping[str, tuple[str, Write]] = {
    FLOAT: (".tflite", lambda program, _: content(program, "litert")),
    "LiteRT, channel": (".tflite", lambda program, ranges: content(program, "litert-int8", ranges)),
    "LiteRT, tensor": (".tflite", _per_tensor),
    "ONNX, channel": (".onnx", lambda program, ranges: content(program, "onnx-int8", ranges)),
}


class Prepared(NamedTuple):
    """A network, and batches of pictures that show the ranges of its activations."""

    program: Program
    ranges: list[np.ndarray]

    @staticmethod
    def of(loaded: pretrained.Pretrained, dataset: data.Dataset, count: int = 200) -> "Prepared":
        """Prepares a network with `count` training pictures."""
        program = program_of(loaded, batch=BATCH)
        shown = program.description.input_of(pictures.draw(loaded, dataset, "train", count))
        return Prepared(program, list(pictures.batches(program, shown)))

    def outputs(self, form: str, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities that the exported file of a form gives in its runtime."""
        suffix, write = FORMS[form]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"network{suffix}"
            path.write_bytes(write(self.program, self.ranges))
            return open_exported(path).run(images)


def top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Returns the accuracy in per cent. Of equal probabilities the first counts, as in an app."""
    return 100 * float(np.mean(outputs.argmax(-1) == labels))


def evaluate(workdir: Path, dataset: data.Dataset, count: int) -> dict[str, float]:
    """Returns the test accuracy of a run, in per cent, in each form."""
    prepared = Prepared.of(pretrained.load(workdir), dataset, count)
    images, labels = (np.asarray(array) for array in dataset.arrays("test"))
    return {form: top1(prepared.outputs(form, images), labels) for form in FORMS}


def sweep_of(workdir: Path) -> Sweep:
    """Returns the sweep in a workdir. Raises UserError unless it was trained on Fashion-MNIST."""
    sweep = load(workdir)
    if (name := sweep.config["data"]["name"]) != DATA:
        raise UserError(f"{workdir} was trained on {name}: this is for {DATA}")
    return sweep


def measure(sweep: Sweep, out: Path, count: int) -> Runs:
    """Measures all finished runs; what was measured before is read from `out`."""
    dataset = data.open_dataset(DATA)
    finished = [(arm, seed) for arm, seeds in sweep.results.items() for seed in sorted(seeds)]
    if not finished:
        raise UserError(
            f"no finished run in {sweep.workdir}: configs/v2_ablation.py:eight_bits trains some"
        )
    line, runs = StatusLine("quantizing"), {}
    for number, (arm, seed) in enumerate(finished, start=1):
        line.say(f"{arm}/{seed}, {number} of {len(finished)}")
        stored = out / "runs" / f"{arm}_{seed}.json"
        if not stored.exists():
            write_json(stored, evaluate(Path(sweep.workdir) / arm / str(seed), dataset, count))
        runs[arm, seed] = read_json(stored, "remove it")
    line.clear()
    return runs


def costs(runs: Runs) -> dict[str, dict[str, Estimate]]:
    """Estimates what each form costs against float32, in points, by arm and form."""
    found: dict[str, dict[str, Estimate]] = {}
    for arm in dict.fromkeys(arm for arm, _ in runs):
        of_arm = [forms for (name, _), forms in runs.items() if name == arm]
        found[arm] = {}
        for form in FORMS:
            differences = [forms[form] - (form != FLOAT) * forms[FLOAT] for forms in of_arm]
            if estimate := Estimate.of(differences):
                found[arm][form] = estimate
    return found


def draw(runs: Runs, path: Path) -> None:
    """Draws what 8 bits cost: a row per arm, a dot per seed, scales per channel and per tensor."""
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    figure = matplotlib.figure.Figure(figsize=(9, 0.36 * len(arms) + 1.5), layout="constrained")
    channel, tensor = figure.subplots(1, 2, sharey=True)
    for axes, form, marker, shade, shift in (
        (channel, "LiteRT, channel", "o", "black", -0.15),
        (channel, "ONNX, channel", "^", "0.55", 0.15),
        (tensor, "LiteRT, tensor", "o", "black", 0.0),
    ):
        axes.plot(
            [forms[form] - forms[FLOAT] for forms in runs.values()],
            [arms.index(arm) + shift for arm, _ in runs],
            marker,
            color=shade,
            markersize=5,
            fillstyle="none",
            label=form.split(",")[0],
        )
    for axes, title in ((channel, "a scale per channel"), (tensor, "a scale per kernel")):
        axes.axvline(0, color="0.8", zorder=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("test top-1, 8 bits - float32, points")
        axes.legend(frameon=False, loc="lower left", fontsize=8)
        axes.grid(axis="y", color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
    tensor.set_xscale("symlog", linthresh=1)
    ticks = (-64, -16, -4, -1, 0, 1)
    tensor.set_xticks(ticks, [str(tick) for tick in ticks])
    tensor.minorticks_off()
    channel.set_yticks(range(len(arms)), arms)
    channel.set_ylim(len(arms) + 0.9, -0.6)  # the legends stand below the arms
    figure.suptitle("Each mark is a seed", fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = command_parser("experiments.paper.quantization", __doc__)
    parser.add_argument("--workdir", type=Path, default=Path("runs/eight_bits"))
    parser.add_argument("--out", type=Path, default=Path("runs/quantization"))
    parser.add_argument(
        "--pictures", type=whole_number(BATCH), default=200, help="to calibrate with (default: 200)"
    )
    arguments = parser.parse_args()
    sweep = sweep_of(arguments.workdir)
    runs = measure(sweep, arguments.out, arguments.pictures)
    found = costs(runs)
    in_8_bits = (f"{form}, points" for form in FORMS if form != FLOAT)
    header = ("arm", "seeds", "float32, top-1 %", *in_8_bits)
    lines = [
        (
            arm,
            by_form[FLOAT].count,
            *(plus_minus(by_form[form], "" if form == FLOAT else "+") for form in FORMS),
        )
        for arm, by_form in found.items()
    ]
    Table("quantization", header, lines).write(
        arguments.out, [{"arm": arm, "seed": seed, **forms} for (arm, seed), forms in runs.items()]
    )
    draw(runs, arguments.out / "quantization.png")
    print(f"\nin {arguments.out}: quantization.csv, quantization.md, quantization.png")


if __name__ == "__main__":
    run(main)
