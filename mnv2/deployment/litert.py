"""Writes a program as a LiteRT (TensorFlow Lite) file."""

import io
import zipfile

import flatbuffers
import jax
import numpy as np

from mnv2.deployment import task_metadata
from mnv2.deployment.program import IMAGE, METADATA, STABLE, Description, Program
from mnv2.runtime.terminal import as_line

SIGNATURE = "serving_default"
LABELS = "labels.txt"


def to_litert(program: Program) -> bytes:
    """Returns the file of a program, for as many images as the program takes."""
    from litert_converter.mlir import ir, passmanager
    from litert_converter.mlir._mlir_libs import converter_api_ext as converter

    exported = jax.export.export(jax.jit(program.output), platforms=[STABLE])(program.image)
    context = ir.Context()
    converter.prepare_mlir_context(context)
    with context:
        module = ir.Module.parse(exported.mlir_module())
        converter.set_signature(
            module.operation,
            signature_name=SIGNATURE,
            input_names=[IMAGE],
            output_names=[program.description.output_name],
        )
        converter.run_convert_to_tfl_passes(
            module, passmanager.PassManager(), converter.ConvertToTFLConfig()
        )
        return bytes(converter.export_flatbuffer_to_bytes(module.operation))


class _Builder(flatbuffers.Builder):
    """Aligns bytes at 16, as LiteRT's schema asks for constants."""

    def StartVector(self, size: int, count: int, alignment: int) -> int:
        return int(super().StartVector(size, count, 16 if size == 1 else alignment))


def with_description(content: bytes, description: Description) -> bytes:
    """Returns a file with the description added to its metadata.

    It is there twice: as this package reads it, and as TensorFlow Lite's tools do. Those look for
    the names of the classes in an archive at the end, in the file labels.txt, one per line.
    """
    from litert_converter import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for constant in model.buffers:  # the quantizer puts them behind the model
        if constant.size:
            end = constant.offset + constant.size
            constant.data = np.frombuffer(content[constant.offset : end], np.uint8)
            constant.offset = constant.size = 0
    labels = None if description.class_names is None else LABELS
    of_task = task_metadata.task_metadata(description, labels)
    for name, text in ((METADATA, description.to_json().encode()), (task_metadata.NAME, of_task)):
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = np.frombuffer(text, np.uint8)
        entry.name, entry.buffer = name, len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
    builder = _Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    if description.class_names is None:
        return bytes(builder.Output())
    file = io.BytesIO(bytes(builder.Output()))
    with zipfile.ZipFile(file, "a") as archive:
        # The oldest time that there can be, so that the same weights give the same file.
        names = "".join(f"{as_line(name)}\n" for name in description.class_names)
        archive.writestr(zipfile.ZipInfo(LABELS), names)
    return file.getvalue()
