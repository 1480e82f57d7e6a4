"""The formats of exported files, by the names that the command line has for them."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mnv2.runtime.errors import UserError, check_choice

if TYPE_CHECKING:  # imports JAX, which --help does not wait for
    from mnv2.deployment.program import Program

type Calibration = Sequence[np.ndarray] | None  # batches that the program takes; None for float32
type Write = Callable[["Program", Calibration, bool], bytes]
PREPROCESSING = ("inside", "outside")  # of a file


class Format(NamedTuple):
    """A format of files.

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
    """Returns the content of the file of a program in one of `FORMATS`, for any batch if `dynamic`.

    `calibration` has batches for int8. Raises UserError if a package is missing.
    """
    chosen = FORMATS[to]
    try:
        return chosen.write(program, calibration if chosen.int8 else None, dynamic)
    except ImportError as error:
        raise UserError(
            f"--to {to} needs {' and '.join(chosen.packages)} ({error.name} is missing): "
            "pip install as docs/export.md says; --to stablehlo needs none"
        ) from error


def _litert(program: "Program", calibration: Calibration, _: bool) -> bytes:
    from mnv2.deployment.litert import to_litert, with_description

    written = to_litert(program)
    if calibration is not None:
        from mnv2.deployment.quantization import quantize_litert

        written = quantize_litert(written, calibration)
    return with_description(written, program.description)


def _onnx(program: "Program", calibration: Calibration, dynamic: bool) -> bytes:
    from mnv2.deployment.onnx import to_onnx

    written = bytes(to_onnx(program, dynamic=dynamic).SerializeToString())
    if calibration is None:
        return written
    from mnv2.deployment.quantization import quantize_onnx

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(written)
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
    "litert-int8": Format(".int8.tflite", _litert, True, False, (*LITERT, "ai-edge-quantizer")),
    "onnx": Format(".onnx", _onnx, False, True, ("onnx", "onnxruntime")),
    "onnx-int8": Format(".int8.onnx", _onnx, True, True, ("onnx", "onnxruntime")),
    "stablehlo": Format(".stablehlo", _stablehlo, False, True, ()),
}
