"""What do 8 bits cost, by block?

Takes every finished run of a sweep on Fashion-MNIST, exports it in float32 and in 8 bits, with a
scale per output channel of a kernel or per kernel (tensor), and evaluates each file on the whole
test split in LiteRT and ONNX Runtime. The ranges of activations are those of 200 training pictures.
Prints and writes, per arm, what 8 bits cost in points, paired with the float32 file of the same
seed. The same command goes on where it stopped.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np

from experiments.common.experiment import Table, experiment_parser, run
from mnv2 import data, pretrained
from mnv2.deployment import pictures
from mnv2.deployment.exported import open_exported
from mnv2.deployment.formats import content
from mnv2.deployment.litert import to_litert, with_description
from mnv2.deployment.program import Program, program_of
from mnv2.deployment.quantization import quantize_litert
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, write_json
from mnv2.sweeps.report import plus_minus
from mnv2.sweeps.statistics import Estimate
from mnv2.sweeps.workdir import load

DATA = "fashion_mnist"
BATCH, PICTURES = 100, 200  # of evaluation; to show the ranges of activations
FLOAT = "LiteRT, float"
TICKS = (-64, -16, -4, -1, 0, 1)  # points, of a symmetric logarithmic axis
POINTS = "test top-1, 8 bits - float32, points"

# The arm and seed of each run; in per cent, such as the test accuracy of each form.
type Runs = Sequence[Mapping[str, Any]]

FORMATS = {
    FLOAT: "litert",
    "LiteRT, channel": "litert-int8",
    "LiteRT, tensor": "",  # which mnv2.export does not write
    "ONNX, channel": "onnx-int8",
}


def _written(program: Program, form: str, ranges: Sequence[np.ndarray]) -> bytes:
    if FORMATS[form]:
        return content(program, FORMATS[form], ranges)
    quantized = quantize_litert(to_litert(program), ranges, per_channel=False)
    return with_description(quantized, program.description)


def outputs(
    loaded: pretrained.Pretrained, dataset: data.Dataset, forms: Iterable[str]
) -> dict[str, np.ndarray]:
    """Returns the probabilities that the file of each form gives for the whole test split.

    The files are run as an app would. Training pictures show the ranges of activations.
    """
    program = program_of(loaded, batch=BATCH)
    shown = program.description.input_of(pictures.draw(loaded, dataset, "train", PICTURES))
    ranges = list(pictures.batches(program, shown))
    images, found = dataset.arrays("test")[0], {}
    for form in forms:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "network.onnx" if form.startswith("ONNX") else "network.tflite")
            path.write_bytes(_written(program, form, ranges))
            found[form] = open_exported(path).run(images)
    return found


def top1(probabilities: np.ndarray, dataset: data.Dataset) -> float:
    """Returns the test accuracy in per cent. Of equal probabilities the first counts."""
    labels = dataset.arrays("test")[1]
    return 100 * float(np.mean(probabilities.argmax(-1) == labels))


def evaluate(run: Path, dataset: data.Dataset) -> dict[str, float]:
    found = outputs(pretrained.load(run), dataset, FORMATS)
    return {form: top1(probabilities, dataset) for form, probabilities in found.items()}


def measure(
    workdir: Path,
    out: Path,
    evaluate: Callable[[Path, data.Dataset], dict[str, float]],
    arms: Sequence[str] = (),
) -> Runs:
    """Evaluates all finished runs of `arms` (default: all); what was measured before is in `out`.

    Raises UserError if there are none that were trained on Fashion-MNIST.
    """
    sweep = load(workdir)
    finished = [
        (arm, seed) for arm in arms or sweep.results for seed in sorted(sweep.results.get(arm, ()))
    ]
    if sweep.config["data"]["name"] != DATA or not finished:
        raise UserError(f"{workdir} has no finished run on {DATA}: see configs/v2_ablation.py")
    dataset, runs = data.open_dataset(DATA), []
    for number, (arm, seed) in enumerate(finished, start=1):
        print(f"{arm}/{seed}, {number} of {len(finished)}", flush=True)
        stored = out / "runs" / f"{arm}_{seed}.json"
        if not stored.exists():
            write_json(stored, evaluate(workdir / arm / str(seed), dataset))
        runs.append({"arm": arm, "seed": seed, **read_json(stored, "remove it")})
    return runs


def costs(runs: Runs, base: str = FLOAT) -> dict[str, dict[str, Any]]:
    """Estimates what each form costs against `base`, in points, by arm and form."""
    found = {}
    for arm in arms_of(runs):
        of_arm = [run for run in runs if run["arm"] == arm]
        found[arm] = {
            form: Estimate.of([run[form] - (form != base) * run[base] for run in of_arm])
            for form in of_arm[0].keys() - {"arm", "seed"}
        }
    return found


def arms_of(runs: Runs) -> list[str]:
    return list(dict.fromkeys(run["arm"] for run in runs))


def draw(runs: Runs, path: Path) -> None:
    """Draws what 8 bits cost: a row per arm, a dot per seed, scales per channel and per tensor."""
    arms = arms_of(runs)
    figure = matplotlib.figure.Figure(figsize=(9, 0.36 * len(arms) + 1.5), layout="constrained")
    channel, tensor = figure.subplots(1, 2, sharey=True)
    for axes, form, marker, shade, shift in (
        (channel, "LiteRT, channel", "o", "black", -0.15),
        (channel, "ONNX, channel", "^", "0.55", 0.15),
        (tensor, "LiteRT, tensor", "o", "black", 0.0),
    ):
        points = [run[form] - run[FLOAT] for run in runs]
        places = [arms.index(run["arm"]) + shift for run in runs]
        how = {"color": shade, "markersize": 5, "fillstyle": "none", "label": form.split(",")[0]}
        axes.plot(points, places, marker, **how)
    for axes, title in ((channel, "a scale per channel"), (tensor, "a scale per kernel")):
        axes.axvline(0, color="0.8", zorder=0)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(POINTS)
        axes.legend(frameon=False, loc="lower left", fontsize=8)
        axes.grid(axis="y", color="0.93")
        axes.spines[["top", "right"]].set_visible(False)
    tensor.set_xscale("symlog", linthresh=1)
    tensor.set_xticks(TICKS, map(str, TICKS))
    tensor.minorticks_off()
    channel.set_yticks(range(len(arms)), arms)
    channel.set_ylim(len(arms) + 0.9, -0.6)  # the legends stand below the arms
    figure.suptitle("Each mark is a seed", fontsize=9)
    figure.savefig(path, dpi=130)


def main() -> None:
    arguments = experiment_parser(__file__, __doc__, workdir="runs/eight_bits").parse_args()
    out = arguments.out
    runs = measure(arguments.workdir, out, evaluate)
    lines = [
        (
            *(arm, by_form[FLOAT].count),
            *(plus_minus(by_form[form], "" if form == FLOAT else "+") for form in FORMATS),
        )
        for arm, by_form in costs(runs).items()
    ]
    in_8_bits = (f"{form}, points" for form in FORMATS if form != FLOAT)
    header = ("arm", "seeds", "float32, top-1 %", *in_8_bits)
    Table("quantization", header, lines).write(out, runs)
    draw(runs, out / "quantization.png")
    print(f"\nin {out}: quantization.csv, quantization.md, quantization.png")


if __name__ == "__main__":
    run(main)
