"""Exports weights: loads, writes, compares, and evaluates if it is asked to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mnv2 import data
from mnv2.deployment import comparison, pictures
from mnv2.deployment.exported import Exported, is_exported, open_exported
from mnv2.deployment.formats import FORMATS, check_formats, content
from mnv2.deployment.program import program_of
from mnv2.deployment.usage import describe_input, open_weights
from mnv2.pretrained import Pretrained
from mnv2.runtime.errors import UserError, reason
from mnv2.runtime.files import check_can_be_written, replacing
from mnv2.runtime.terminal import StatusLine

COMPARED = 200  # pictures, at most
NOISE = 8  # images in place of pictures, if there are none


def export(
    weights: str | Path,
    to: Sequence[str],
    output: Path,
    *,
    force: bool = False,
    preprocessing: str = "inside",
    batch: int | None = 1,
    calibrate: str | None = None,
    calibration_pictures: int = 200,
    check: str | None = None,
    data_dir: str | None = None,
    threads: int = 1,
    **options: Any,
) -> tuple[dict[str, Path], str]:
    """Writes weights in formats such as litert and onnx, and compares the files with JAX.

    The arguments are the options of the command `mnv2.export`; `batch` is None for any, and
    `options` are those of `open_weights`.

    Returns the path of the file in each format, and a table of the comparison. Raises UserError for
    bad input, before anything is written.
    """
    check_formats(to, preprocessing, batch, calibrate)
    if is_exported(weights):
        raise UserError(f"{weights} is exported already: give what it was exported from")
    paths = _output_paths(str(weights), to, output)
    _check_free([*paths.values()], force)
    loaded: Any = open_weights(weights, **options)
    checked = None
    if check:
        from mnv2.training.classes import match_classes  # imports TensorFlow

        checked = data.open_dataset(check, data_dir)
        checked.num_examples("test")  # raises UserError if there are none
        loaded = match_classes(loaded, checked, str(weights))
    program = program_of(loaded, pixels=preprocessing == "inside", batch=batch or 1)
    ranges, shown = [], None
    if calibrate:
        shown = pictures.draw_any(loaded, calibrate, data_dir, calibration_pictures)
        ranges = list(pictures.batches(program, program.description.input_of(shown)))
        if not ranges:
            raise UserError(
                f"{len(shown)} pictures to calibrate with are less than one batch of {batch}: "
                "raise --calibration_pictures or lower --batch"
            )
    describe_input(loaded.preprocess, loaded.image_size, options.get("mean") is not None)
    images = _images_to_compare(loaded, checked, calibrate, shown)
    line = StatusLine("exporting")
    for name, path in paths.items():
        line.say(name)
        _write(path, content(program, name, ranges, dynamic=batch is None))
    line.clear()
    table = comparison.compare([*paths.values()], program, images, batch, threads)
    if checked:
        files = [path for path in paths.values() if is_exported(path)]
        table += f"\n{_evaluations(loaded, files, checked)}"
    return paths, table


def _check_free(paths: Sequence[Path], force: bool) -> None:
    """Raises UserError unless files can be written there."""
    for path in paths:
        if path.is_dir():
            raise UserError(f"{path} is a folder: give another --output")
        if path.exists() and not force:
            raise UserError(f"{path} exists: --force replaces it, --output gives another place")
        check_can_be_written(path.parent, "the folder of --output")


def _write(path: Path, written: bytes) -> None:
    try:
        with replacing(path) as unfinished:
            unfinished.write_bytes(written)
    except OSError as error:
        raise UserError(f"cannot write {path}: {reason(error)}") from error


def _output_paths(weights: str, formats: Sequence[str], output: Path) -> dict[str, Path]:
    """Returns the path of the file in each format.

    `output` is a file if it has the suffix of the only format, and otherwise a folder. Raises
    UserError if it has the suffix of another format.
    """
    endings = {name: Path(f"x{chosen.suffix}").suffix for name, chosen in FORMATS.items()}
    if output.suffix in endings.values():
        (only, *others) = formats
        if others:
            raise UserError(
                f"--output {output} is one file for {len(formats)} formats: give a folder"
            )
        if output.suffix != endings[only]:
            raise UserError(f"--output {output} must end in {endings[only]} for --to {only}")
        return {only: output}
    source = Path(weights).expanduser().absolute()
    of_run = source.name.isdecimal()  # ARM/SEED
    stem = f"{source.parent.name}_{source.name}" if of_run else source.stem
    return {name: output / f"{stem}{FORMATS[name].suffix}" for name in formats}


def _images_to_compare(
    loaded: Pretrained,
    check: "data.Dataset | None",
    calibrate: str | None,
    shown: np.ndarray | None,
) -> comparison.Images:
    """Returns pictures of the test split, those that calibrated, or noise."""
    if check:
        images = pictures.draw(loaded, check, "test", COMPARED)
        return comparison.Images(images, f"{len(images)} test pictures of {check.name}", True)
    if shown is not None:
        images = shown[:COMPARED]
        return comparison.Images(images, f"{len(images)} pictures of {calibrate}", True)
    shape = (NOISE, *loaded.image_size, loaded.channels)
    noise = np.random.default_rng(0).integers(0, 256, shape).astype(np.float32)
    source = f"{NOISE} images of noise (--check DATASET gives pictures)"
    return comparison.Images(noise, source, False)


def _evaluations(loaded: Pretrained, files: Sequence[Path], dataset: "data.Dataset") -> str:
    """Evaluates JAX and exported files on the whole test split; returns a table."""
    from mnv2.deployment.evaluation import evaluate_any  # imports TensorFlow

    networks: dict[str, Pretrained | Exported] = {"JAX": loaded}
    networks |= {path.name: open_exported(path) for path in files}
    width = max(map(len, networks))
    lines = [f"{'test split of ' + dataset.name:{width}}   top-1     loss"]
    for name, network in networks.items():
        summary, _ = evaluate_any(network, dataset, "test", batch_size=100)
        lines.append(f"{name:{width}}  {100 * summary['accuracy']:6.2f} %  {summary['loss']:6.4f}")
    return "\n".join(lines)
