"""Turns exported files into int8 ones, with the ranges that calibration pictures show."""

import contextlib
import io
import itertools
import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mnv2.deployment.litert import SIGNATURE
from mnv2.deployment.program import IMAGE
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import first_few


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the libraries from printing their progress, and advice that does not apply."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(action="ignore"),
        ):
            yield
    finally:
        logging.disable(disabled)


@_quiet()
def quantize_litert(
    content: bytes, images: Iterable[np.ndarray], *, per_channel: bool = True
) -> bytes:
    """Returns the int8 form of a LiteRT file: weights per channel, activations per tensor.

    Each of `images` is a batch that the file takes. Unless `per_channel`, each kernel has one scale
    for all of its channels, which is for experiments only. Raises UserError if LiteRT could not run
    the file, because some tensor is constant for all images.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        activation_num_bits=8,
        weight_num_bits=8,
        weight_granularity=(
            qtyping.QuantGranularity.CHANNELWISE
            if per_channel
            else qtyping.QuantGranularity.TENSORWISE
        ),
    )
    whole = quantizer.Quantizer(bytearray(content))
    whole.load_quantization_recipe(recipe.get_quantization_recipe())
    ranges = whole.calibrate({SIGNATURE: [{IMAGE: batch} for batch in images]})
    quantized = bytes(whole.quantize(ranges).quantized_model)
    try:
        Interpreter(model_content=quantized).allocate_tensors()
    except RuntimeError as error:
        flat = [name for name, found in ranges.items() if np.ptp([found["min"], found["max"]]) == 0]
        layers = first_few(dict.fromkeys(map(_layer, flat)))
        what = f"these layers are 0 for all calibration pictures: {layers}" if flat else error
        raise UserError(
            f"LiteRT cannot run this network in 8 bits ({what}): calibrate with more pictures, "
            "of the kind that it was trained with"
        ) from error
    return quantized


def _layer(tensor: str) -> str:
    """Returns the layer that a tensor is named after: ...jit(output)/MobileNetV2/stem/add"""
    parts = tensor.split(";")[-1].split("/")[2:-1]
    return "/".join(itertools.takewhile(lambda part: "." not in part, parts)) or tensor


@_quiet()
def quantize_onnx(source: Path, target: Path, images: Iterable[np.ndarray]) -> None:
    """Writes the int8 form of an ONNX file: weights per channel, activations per tensor."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rest = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.rest, None)
            return None if batch is None else {IMAGE: batch}

    quantization.quantize_static(
        str(source),
        str(target),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        # On a CPU with AVX2 only, uint8 is 2.5 times as fast as int8 (one image, one thread: 0.29
        # and 0.73 ms), but its sums of 16 bits overflow unless weights are kept to 7 bits: 83.6 %
        # of Fashion-MNIST with 8 bits, 84.1 % with 7.
        activation_type=quantization.QuantType.QUInt8,
        reduce_range=True,
        op_types_to_quantize=["Conv", "Gemm", "Add", "Clip", "Relu", "ReduceMean", "MaxPool"],
        extra_options={"WeightSymmetric": True, "ActivationSymmetric": False},
    )
