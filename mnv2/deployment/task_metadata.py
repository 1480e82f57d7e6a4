"""TensorFlow Lite's own metadata, which Android's and MediaPipe's image classifiers read.

It says that the input is a picture, how its values are normalised, and which file has the names of
the classes. Source: metadata_schema.fbs of TensorFlow Lite, in the order of whose fields the
numbers below count.
"""

from collections.abc import Sequence

import flatbuffers
import numpy as np

from mnv2.deployment.program import IMAGE, Description

NAME = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_FEATURE, _PICTURE = 1, 2  # kinds of content
_RGB, _GRAY = 1, 2
_NORMALIZATION = 1  # kind of process unit
_AXIS_LABELS = 2  # kind of associated file

type Field = tuple[int, str, int]  # number, type (byte, int or reference), value


def task_metadata(about: Description, labels: str | None) -> bytes:
    """Returns the metadata of a classifier; `labels` names the file with the classes' names."""
    builder = flatbuffers.Builder(1024)
    size = _table(builder, (0, "int", about.image_size[1]), (1, "int", about.image_size[0]))
    colours = _RGB if about.channels == 3 else _GRAY
    picture = _table(builder, (0, "byte", colours), (1, "reference", size))
    mean, std, low, high = _normalisation(about)
    normalised = _table(
        builder,
        (0, "reference", _floats(builder, mean)),
        (1, "reference", _floats(builder, std)),
    )
    unit = _table(builder, (0, "byte", _NORMALIZATION), (1, "reference", normalised))
    shown = _tensor(builder, IMAGE, _PICTURE, picture, (low, high), units=[unit])
    files = []
    if labels is not None:
        named = ((0, "reference", builder.CreateString(labels)), (2, "byte", _AXIS_LABELS))
        files.append(_table(builder, *named))
    feature = _table(builder)
    limits = ([0.0], [1.0]) if about.pixels else None  # logits have none
    found = _tensor(builder, about.output, _FEATURE, feature, limits, files=files)
    graph = _table(
        builder,
        (2, "reference", _references(builder, [shown])),
        (3, "reference", _references(builder, [found])),
    )
    name = builder.CreateString("image classifier")
    graphs = _references(builder, [graph])
    builder.Finish(_table(builder, (0, "reference", name), (3, "reference", graphs)), _IDENTIFIER)
    return bytes(builder.Output())


def _normalisation(about: Description) -> tuple[list[float], ...]:
    """Returns mean and deviation of values from 0 to 255, and the limits of the input."""
    if about.pixels:  # the network normalises them itself
        return [0.0], [1.0], [0.0], [255.0]
    mean, std = (np.asarray(values) for values in (about.preprocess.mean, about.preprocess.std))
    limits = ((0 - mean) / std, (1 - mean) / std)
    return tuple(np.atleast_1d(values).tolist() for values in (255 * mean, 255 * std, *limits))


def _tensor(
    builder: flatbuffers.Builder,
    name: str,
    kind: int,
    properties: int,
    limits: tuple[Sequence[float], Sequence[float]] | None,
    *,
    units: Sequence[int] = (),
    files: Sequence[int] = (),
) -> int:
    """Describes an input or output of the network."""
    content = _table(builder, (0, "byte", kind), (1, "reference", properties))
    fields: list[Field] = [
        (0, "reference", builder.CreateString(name)),
        (3, "reference", content),
    ]
    if limits is not None:
        low, high = (_floats(builder, values) for values in limits)
        stats = _table(builder, (0, "reference", high), (1, "reference", low))
        fields.append((5, "reference", stats))
    if units:
        fields.append((4, "reference", _references(builder, units)))
    if files:
        fields.append((6, "reference", _references(builder, files)))
    return _table(builder, *fields)


def _table(builder: flatbuffers.Builder, *fields: Field) -> int:
    add = {
        "byte": lambda number, value: builder.PrependInt8Slot(number, value, 0),
        "int": lambda number, value: builder.PrependUint32Slot(number, value, 0),
        "reference": lambda number, value: builder.PrependUOffsetTRelativeSlot(number, value, 0),
    }
    builder.StartObject(max((number for number, *_ in fields), default=-1) + 1)
    for number, kind, value in fields:
        add[kind](number, value)
    return int(builder.EndObject())


def _floats(builder: flatbuffers.Builder, values: Sequence[float]) -> int:
    return int(builder.CreateNumpyVector(np.asarray(values, np.float32)))


def _references(builder: flatbuffers.Builder, tables: Sequence[int]) -> int:
    builder.StartVector(4, len(tables), 4)
    for table in reversed(tables):
        builder.PrependUOffsetTRelative(table)
    return int(builder.EndVector())
