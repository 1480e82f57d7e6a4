"""The formats of exported files, by the names that the command line has for them."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnv2.runtime.errors import UserError, check_choice

if TYPE_CHECKING:  # imports JAX, which --help does not wait for
    from mnv2.deployment.program import Program

type Write = Callable[["Program", Sequence[np.ndarray], bool], bytes]
PREPROCESSING = ("inside", "outside")  # of a file


class Format(NamedTuple):
    """A format of files.

    suffix    of its files
    write     returns the content of the file of a program
    int8      weights and activations have 8 bits; `write` needs batches to calibrate with
    dynamic   a file may take any number of images
    packages  that write and run it
    """

    suffix: str
    write: Write
    int8: bool
    dynamic: bool
    packages: tuple[str, ...]


def check_formats(
    formats: Sequence[str], preprocessing: str, batch: int | None, calibrate: str | None
) -> None:
    """Raises UserError for an unknown choice, and if a format needs what is not given."""
    check_choice(preprocessing, PREPROCESSING, "--preprocessing")
    if batch is not None and batch < 1:
        raise UserError(f"--batch must be a whole number, 1 or more, or any, got '{batch}'")
    for name in formats:
        check_choice(name, FORMATS, "--to")
        if batch is None and not FORMATS[name].dynamic:
            dynamic = [other for other in FORMATS if FORMATS[other].dynamic]
            raise UserError(f"--batch any is for {', '.join(dynamic)}, not for {name}")
        if FORMATS[name].int8 and not calibrate:
            raise UserError(
                f"--to {name} needs pictures to calibrate with: --calibrate folder:PATH"
            )


def content(
    program: "Program", to: str, calibration: Sequence[np.ndarray] = (), *, dynamic: bool = False
) -> bytes:
    """Returns the content of the file of a program in one of `FORMATS`.

    `calibration` has batches that the program takes, for int8. With `dynamic` the file takes any
    number of images. Raises UserError if a package is missing.
    """
    chosen = FORMATS[to]
    try:
        return chosen.write(program, calibration, dynamic)
    except ImportError as error:
        install = 'pip install ".[export]"'
        if "litert-converter" in chosen.packages:
            install += " && pip install --no-deps -r requirements-converter.txt"
        raise UserError(
            f"--to {to} needs {' and '.join(chosen.packages)} ({error.name} is missing): "
            f"{install}, in a checkout of mnv2; --to stablehlo needs none"
        ) from error


def _litert(program: "Program", *_: Any) -> bytes:
    from mnv2.deployment.litert import to_litert, with_description

    return with_description(to_litert(program), program.description)


def _litert_int8(program: "Program", calibration: Sequence[np.ndarray], _: bool) -> bytes:
    from mnv2.deployment.litert import to_litert, with_description
    from mnv2.deployment.quantization import quantize_litert

    return with_description(quantize_litert(to_litert(program), calibration), program.description)


def _onnx(program: "Program", _: Any, dynamic: bool) -> bytes:
    from mnv2.deployment.onnx import to_onnx

    return bytes(to_onnx(program, dynamic=dynamic).SerializeToString())


def _onnx_int8(program: "Program", calibration: Sequence[np.ndarray], dynamic: bool) -> bytes:
    from mnv2.deployment.quantization import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(_onnx(program, (), dynamic))
        quantize_onnx(source, target, calibration)
        return target.read_bytes()


def _stablehlo(program: "Program", _: Any, dynamic: bool) -> bytes:
    import jax

    image = program.image
    if dynamic:
        (batch,) = jax.export.symbolic_shape("batch")
        image = jax.ShapeDtypeStruct((batch, *image.shape[1:]), image.dtype)
    export = jax.export.export(jax.jit(program.output), platforms=["cpu", "cuda", "rocm", "tpu"])
    return bytes(export(image).serialize())


LITERT = ("litert-converter", "ai-edge-litert")
FORMATS = {
    "litert": Format(".tflite", _litert, False, False, LITERT),
    "litert-int8": Format(
        ".int8.tflite", _litert_int8, True, False, (*LITERT, "ai-edge-quantizer")
    ),
    "onnx": Format(".onnx", _onnx, False, True, ("onnx", "onnxruntime")),
    "onnx-int8": Format(".int8.onnx", _onnx_int8, True, True, ("onnx", "onnxruntime")),
    "stablehlo": Format(".stablehlo", _stablehlo, False, True, ()),
}
