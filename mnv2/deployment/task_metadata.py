"""TensorFlow Lite's own metadata, which Android's and MediaPipe's image classifiers read.

Source: metadata_schema.fbs of TensorFlow Lite, by the order of its fields they have numbers here.
"""

from typing import Any

import flatbuffers
import numpy as np

from mnv2.deployment.program import IMAGE, Description

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_FEATURE, _PICTURE = b"\1", b"\2"  # kinds of content
_RGB, _GRAY = b"\1", b"\2"
_NORMALIZATION = b"\1"  # kind of process unit
_AXIS_LABELS = b"\2"  # kind of associated file


def task_metadata(description: Description, labels: str | None) -> bytes:
    """Returns the metadata of a classifier; `labels` names the file with the classes' names."""
    mean, std, low, high = _normalisation(description)
    size = {0: description.image_size[1], 1: description.image_size[0]}
    picture = {0: _RGB if description.channels == 3 else _GRAY, 1: size}
    unit = {0: _NORMALIZATION, 1: {0: mean, 1: std}}
    shown = {0: IMAGE, 3: {0: _PICTURE, 1: picture}, 4: [unit], 5: {0: high, 1: low}}
    found: dict[int, Any] = {0: description.output_name, 3: {0: _FEATURE, 1: {}}}
    if description.pixels:  # logits have no limits
        found[5] = {0: [1.0], 1: [0.0]}
    if labels is not None:
        found[6] = [{0: labels, 2: _AXIS_LABELS}]
    builder = flatbuffers.Builder(1024)
    graph = {2: [shown], 3: [found]}
    builder.Finish(_add(builder, {0: "image classifier", 3: [graph]}), _IDENTIFIER)
    return bytes(builder.Output())


def _normalisation(description: Description) -> tuple[list[float], ...]:
    """Returns mean and deviation of values from 0 to 255, and the limits of the input."""
    if description.pixels:  # the network normalises them itself
        return [0.0], [1.0], [0.0], [255.0]
    preprocess = description.preprocess
    mean, std = np.asarray(preprocess.mean), np.asarray(preprocess.std)
    limits = ((0 - mean) / std, (1 - mean) / std)
    return tuple(np.atleast_1d(values).tolist() for values in (255 * mean, 255 * std, *limits))


def _add(builder: flatbuffers.Builder, value: str | list[Any] | dict[int, Any]) -> int:
    """Adds a text, a list of numbers or tables, or a table by its fields; returns where it is.

    Fields of a table are such values, whole numbers of 32 bits, and kinds of one byte.
    """
    if isinstance(value, str):
        return int(builder.CreateString(value))
    if isinstance(value, list) and isinstance(value[0], float):
        return int(builder.CreateNumpyVector(np.asarray(value, np.float32)))
    if isinstance(value, list):
        tables = [_add(builder, table) for table in value]
        builder.StartVector(4, len(tables), 4)
        for table in reversed(tables):
            builder.PrependUOffsetTRelative(table)
        return int(builder.EndVector())
    inner = {n: _add(builder, x) for n, x in value.items() if not isinstance(x, int | bytes)}
    builder.StartObject(max(value, default=-1) + 1)
    for number, field in value.items():
        if number in inner:
            builder.PrependUOffsetTRelativeSlot(number, inner[number], 0)
        elif isinstance(field, bytes):
            builder.PrependInt8Slot(number, field[0], 0)
        else:
            builder.PrependUint32Slot(number, field, 0)
    return int(builder.EndObject())
