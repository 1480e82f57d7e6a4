"""What `python -m mnv2.export` does: loads, writes, compares, and evaluates if it is asked to."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mnv2 import data
from mnv2.deployment import comparison, pictures
from mnv2.deployment.exported import Exported, is_exported, open_exported
from mnv2.deployment.formats import FORMATS, content
from mnv2.deployment.program import Program, program_of
from mnv2.deployment.usage import evaluate_any
from mnv2.pretrained import Pretrained
from mnv2.pretrained.options import describe_input, load_as_asked
from mnv2.runtime.errors import UserError, reason
from mnv2.runtime.files import check_can_be_written, replacing
from mnv2.runtime.terminal import StatusLine
from mnv2.training.classes import match_classes

COMPARED = 200  # pictures, at most
NOISE = 8  # images in place of pictures, if there are none


class Images(NamedTuple):
    """What exported files are compared on: images in [0, 255], and what they are."""

    images: np.ndarray
    source: str
    real: bool


def export(arguments: argparse.Namespace, formats: Sequence[str]) -> None:
    """Exports weights as the options of the command say. Raises UserError for bad input."""
    if is_exported(arguments.weights):
        raise UserError(
            f"{arguments.weights} is exported already: give the weights that it was exported from"
        )
    paths = output_paths(arguments.weights, formats, arguments.output)
    for path in paths.values():
        if path.is_dir():
            raise UserError(f"{path} is a folder: give another --output")
        if path.exists() and not arguments.force:
            raise UserError(f"{path} exists: --force replaces it, --output gives another place")
        check_can_be_written(path.parent, "the folder of --output")
    loaded = load_as_asked(arguments)
    check = None
    if arguments.check:
        check = data.open_dataset(arguments.check, arguments.data_dir)
        check.num_examples("test")  # raises UserError if there are none
        loaded = match_classes(loaded, check, arguments.weights)
    elif arguments.calibrate and loaded.class_names is None:
        loaded = _named_by_calibration(loaded, arguments)
    inside, dynamic = arguments.preprocessing == "inside", arguments.batch == "any"
    program = program_of(loaded, pixels=inside, batch=1 if dynamic else int(arguments.batch))
    ranges: list[np.ndarray] = []
    shown = None
    if arguments.calibrate:
        shown = pictures.draw_any(
            loaded, arguments.calibrate, arguments.data_dir, arguments.calibration_pictures
        )
        ranges = list(pictures.batches(program, program.description.input_of(shown)))
        if not ranges:
            raise UserError(
                f"{len(shown)} pictures to calibrate with are less than one batch of "
                f"{arguments.batch}: raise --calibration_pictures or lower --batch"
            )
    describe_input(loaded.preprocess, loaded.image_size, arguments.mean is not None)
    images = images_to_compare(loaded, check, arguments.calibrate, shown)
    line = StatusLine("exporting")
    for name, path in paths.items():
        line.say(name)
        written = content(program, name, ranges, dynamic=dynamic)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_bytes(written)
        except OSError as error:
            raise UserError(f"cannot write {path}: {reason(error)}") from error
    line.clear()
    rows = [_compare(name, path, program, images, arguments) for name, path in paths.items()]
    print(comparison.table(rows, program, images.source, arguments.threads))
    if check:
        files = [path for name, path in paths.items() if is_exported(path)]
        print(evaluations(loaded, files, check))


def _named_by_calibration(loaded: Pretrained, arguments: argparse.Namespace) -> Pretrained:
    """Returns weights with the names of the calibration set, if it has as many classes."""
    dataset = pictures.with_classes(arguments.calibrate, arguments.data_dir)
    if dataset is None or dataset.num_classes != loaded.num_classes:
        return loaded
    return match_classes(loaded, dataset, arguments.weights)


def output_paths(weights: str, formats: Sequence[str], output: Path) -> dict[str, Path]:
    """Returns the path of the file in each format.

    `output` is a file if it has the suffix of the only format, and otherwise a folder. Raises
    UserError if it has the suffix of another format.
    """
    known = {chosen.suffix for chosen in FORMATS.values()}
    if output.suffix and any(suffix.endswith(output.suffix) for suffix in known):
        (only, *others) = formats
        wanted = FORMATS[only].suffix.rpartition(".")[2]
        if others:
            raise UserError(
                f"--output {output} is one file for {len(formats)} formats: give a folder"
            )
        if output.suffix != f".{wanted}":
            raise UserError(f"--output {output} must end in .{wanted} for --to {only}")
        return {only: output}
    source = Path(weights).expanduser().absolute()
    of_run = source.name.isdecimal()  # ARM/SEED
    stem = f"{source.parent.name}_{source.name}" if of_run else source.stem
    return {name: output / f"{stem}{FORMATS[name].suffix}" for name in formats}


def images_to_compare(
    loaded: Pretrained, check: data.Dataset | None, calibrate: str | None, shown: np.ndarray | None
) -> Images:
    """Returns pictures of the test split, those that calibrated, or noise."""
    if check:
        images = pictures.draw(loaded, check, "test", COMPARED)
        return Images(images, f"{len(images)} test pictures of {check.name}", True)
    if shown is not None:
        images = shown[:COMPARED]
        return Images(images, f"{len(images)} pictures of {calibrate}", True)
    shape = (NOISE, *loaded.image_size, loaded.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    return Images(noise, f"{NOISE} images of noise (--check DATASET gives pictures)", False)


def _compare(
    name: str, path: Path, program: Program, images: Images, arguments: argparse.Namespace
) -> comparison.Compared:
    inputs = program.description.input_of(images.images)
    if is_exported(path):
        exported = open_exported(path, arguments.threads)
        return comparison.compare(
            path, exported.run, len(exported.operators), program, inputs, real=images.real
        )
    stored = jax.export.deserialize(bytearray(path.read_bytes()))
    size = None if arguments.batch == "any" else program.image.shape[0]
    run = comparison.in_batches(jax.jit(stored.call), size)
    operators = stored.mlir_module().count(" stablehlo.")
    return comparison.compare(path, run, operators, program, inputs, real=images.real)


def evaluations(loaded: Pretrained, files: Sequence[Path], dataset: data.Dataset) -> str:
    """Evaluates JAX and exported files on the whole test split; returns a table."""
    networks: dict[str, Pretrained | Exported] = {"JAX": loaded}
    networks |= {str(path): open_exported(path) for path in files}
    width = max(map(len, networks))
    lines = [f"{'test split of ' + dataset.name:{width}}   top-1     loss"]
    for name, network in networks.items():
        summary, _ = evaluate_any(network, dataset, "test", batch_size=100)
        lines.append(f"{name:{width}}  {100 * summary['accuracy']:6.2f} %  {summary['loss']:6.4f}")
    return "\n".join(lines)
