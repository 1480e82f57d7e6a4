"""Runs exported files as if they were weights: .tflite in LiteRT, .onnx in ONNX Runtime."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mnv2.deployment.program import METADATA, Description
from mnv2.runtime.errors import UserError, first_line
from mnv2.runtime.files import did_you_mean

type Run = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Exported(Description):
    """An exported file that can be run. Its attributes are named as those of `Pretrained`.

    run        computes the output (n classes) of images (n h w c) of the type the file takes
    operators  the names of the operations, in order
    step       between two outputs of a file whose outputs have 8 bits; 0 for float32
    """

    path: Path
    run: Run
    operators: tuple[str, ...]
    step: float = 0.0

    @property
    def output(self) -> str:
        return self.activation

    @property
    def display_names(self) -> tuple[str, ...]:
        """The names of the classes, or numbers in their place."""
        return self.class_names or tuple(f"class {i}" for i in range(self.classes))

    def logits(self, pixels: np.ndarray) -> Float[np.ndarray, "n classes"]:
        """Computes logits of images (n h w c) in [0, 255]: logarithms of probabilities.

        A probability of 0 becomes half of the file's step, or the smallest float32.
        """
        outputs = self.run(self.input_of(pixels))
        if not self.pixels:
            return outputs
        smallest = self.step / 2 or np.finfo(np.float32).tiny
        logarithms = np.log(np.maximum(outputs, smallest))
        if self.output == "softmax":
            return logarithms
        return logarithms - np.log(np.maximum(1 - outputs, smallest))

    def probabilities(self, pixels: np.ndarray) -> Float[np.ndarray, "n classes"]:
        """Computes the probability of each class for images (n h w c) in [0, 255]."""
        outputs = self.run(self.input_of(pixels))
        if self.pixels:
            return outputs
        if self.output == "sigmoid":
            return 1 / (1 + np.exp(-outputs))
        powers = np.exp(outputs - outputs.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    def with_class_names(self, names: Sequence[str], source: str) -> "Exported":
        """Gives the classes other names. Raises UserError if `source` has too many or too few."""
        if len(names) != self.classes:
            raise UserError(
                f"{source} names {len(names)} classes but {self.path} knows {self.classes}"
            )
        return dataclasses.replace(self, class_names=tuple(names))

    def without_background(self) -> "Exported":
        """Removes the first of 1001 classes, which is the background in slim."""
        if self.classes != 1001:
            return self

        def run(images: np.ndarray) -> np.ndarray:
            kept = self.run(images)[:, 1:]
            if not self.pixels or self.output == "sigmoid":
                return kept
            rest = kept.sum(-1, keepdims=True)  # in 8 bits, the background can leave nothing
            return kept / np.maximum(rest, np.finfo(np.float32).tiny)

        names = self.class_names and self.class_names[1:]
        return dataclasses.replace(self, classes=1000, class_names=names, run=run)


def in_batches(compute: Callable[[np.ndarray], object], size: int | None) -> Run:
    """Returns the function that computes outputs in batches of `size`; None: in one batch."""

    def run(images: np.ndarray) -> np.ndarray:
        count, rows = size or len(images), []
        for start in range(0, len(images), count):
            batch = images[start : start + count]
            padding = [(0, count - len(batch))] + [(0, 0)] * (batch.ndim - 1)
            rows.append(np.asarray(compute(np.pad(batch, padding)))[: len(batch)])
        return np.concatenate(rows)

    return run


def is_exported(path: str | Path) -> bool:
    """Tells whether a name is that of an exported file."""
    return Path(path).suffix.lower() in READERS


def open_exported(path: str | Path, threads: int | None = None) -> Exported:
    """Opens an exported file for `threads` threads (default: the runtime's choice).

    Raises UserError if it cannot be read, is not from this package, or its runtime is missing.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"no such file: {path}{did_you_mean(path)}")
    try:
        return READERS[path.suffix.lower()](path, threads)
    except ImportError as error:
        raise UserError(
            f'to run {path}, {error.name} is needed: pip install ".[export]" in a checkout of mnv2'
        ) from error


def _described(path: Path, text: str | None, **run: Any) -> Exported:
    """Returns the file with what its description says; `run` and so on are as in `Exported`."""
    if text is None:
        raise UserError(f"{path} has no description: only files that mnv2.export wrote are read")
    try:
        return Exported(path=path, **run, **vars(Description.from_json(text)))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged description: {error}") from error


def _open_litert(path: Path, threads: int | None) -> Exported:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    content = path.read_bytes()
    if content[4:8] != b"TFL3":
        raise UserError(f"{path} is no LiteRT file")
    try:
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        model: Any = schema.ModelT.InitFromPackedBuf(content, 0)
    except Exception as error:  # of many types, for damaged files
        raise UserError(f"LiteRT cannot read {path}: {first_line(error)}") from error
    buffers = [x.buffer for x in model.metadata or () if x.name == METADATA.encode()]
    description = bytes(model.buffers[buffers[0]].data).decode() if buffers else None
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def compute(batch: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], quantized(batch, given))
        interpreter.invoke()
        return _dequantized(interpreter.get_tensor(result["index"]), result)

    run = in_batches(compute, int(given["shape"][0]))
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    codes = [model.operatorCodes[x.opcodeIndex] for x in model.subgraphs[0].operators]
    operators = tuple(names[max(x.builtinCode, x.deprecatedBuiltinCode)] for x in codes)
    step, _ = result["quantization"]
    return _described(path, description, run=run, operators=operators, step=step)


def quantized(images: np.ndarray, details: Any) -> np.ndarray:
    """Returns what an input of LiteRT takes for images; `details` are its `get_input_details`."""
    scale, zero = details["quantization"]
    if not scale or images.dtype == details["dtype"]:
        return images
    limits = np.iinfo(details["dtype"])
    return np.clip(np.rint(images / scale) + zero, limits.min, limits.max).astype(details["dtype"])


def _dequantized(outputs: np.ndarray, details: Any) -> np.ndarray:
    scale, zero = details["quantization"]
    return (outputs.astype(np.float32) - zero) * scale if scale else outputs


def _open_onnx(path: Path, threads: int | None) -> Exported:
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # of many types, for damaged files
        raise UserError(f"ONNX Runtime cannot read {path}: {first_line(error)}") from error
    description = session.get_modelmeta().custom_metadata_map.get(METADATA)
    (given,) = session.get_inputs()

    def compute(batch: np.ndarray) -> np.ndarray:
        (outputs,) = session.run(None, {given.name: batch})
        return np.asarray(outputs)

    fixed = given.shape[0] if isinstance(given.shape[0], int) else None
    operators = tuple(node.op_type for node in onnx.load(path).graph.node)
    return _described(path, description, run=in_batches(compute, fixed), operators=operators)


READERS = {".tflite": _open_litert, ".onnx": _open_onnx}
