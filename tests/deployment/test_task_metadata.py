"""The metadata is read as TensorFlow Lite's tools read it: by the numbers of fields."""

import numpy as np
import pytest
from flatbuffers import number_types
from flatbuffers.table import Table

from mnv2.deployment.program import Description
from mnv2.deployment.task_metadata import task_metadata
from mnv2.preprocess.host import named_view
from mnv2.pretrained import Preprocessing


def field(table, number, read):
    """Returns what `read` makes of a field's place; None if the table lacks the field."""
    offset = table.Offset(4 + 2 * number)
    return read(table, table.Pos + offset) if offset else None


def byte(table, place):
    return table.Get(number_types.Int8Flags, place)


def text(table, place):
    return table.String(place).decode()


def one(table, place):
    return Table(table.Bytes, table.Indirect(place))


def first(table, place):
    start = place - table.Pos
    return Table(table.Bytes, table.Indirect(table.Vector(start)))


def floats(number):
    def read(table, _):
        offset = table.Offset(4 + 2 * number)
        count, start = table.VectorLen(offset), table.Vector(offset)
        return np.frombuffer(bytes(table.Bytes), np.float32, count, start)

    return read


def described(pixels, channels, labels):
    mean, std = (0.485, 0.456, 0.406)[:channels], (0.229, 0.224, 0.225)[:channels]
    about = Description(
        pixels=pixels,
        activation="softmax",
        preprocess=Preprocessing(named_view("bilinear", 0.875), mean, std),
        image_size=(96, 80),
        channels=channels,
        classes=2,
        class_names=("cat", "dog"),
    )
    content = task_metadata(about, labels)
    assert content[4:8] == b"M001"
    (start,) = np.frombuffer(content[:4], np.uint32)
    return field(Table(bytearray(content), int(start)), 3, first)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_input_is_a_picture_of_the_networks_size_and_colours(channels):
    shown = field(described(True, channels, None), 2, first)
    assert field(shown, 0, text) == "image"
    content = field(shown, 3, one)
    assert field(content, 0, byte) == 2
    picture = field(content, 1, one)
    assert field(picture, 0, byte) == (1 if channels == 3 else 2)
    size = field(picture, 1, one)
    read = [field(size, n, lambda t, p: t.Get(number_types.Uint32Flags, p)) for n in (0, 1)]
    assert read == [80, 96]  # width, height


@pytest.mark.parametrize("pixels", [True, False])
def test_values_from_0_to_255_are_normalised_as_the_network_needs_them(pixels):
    shown = field(described(pixels, 3, None), 2, first)
    unit = field(shown, 4, first)
    assert field(unit, 0, byte) == 1
    options = field(unit, 1, one)
    mean, std = (field(options, number, floats(number)) for number in (0, 1))
    if pixels:
        assert (mean, std) == ([0], [1])
        return
    np.testing.assert_allclose(mean, [123.675, 116.28, 103.53], rtol=1e-6)
    np.testing.assert_allclose(std, [58.395, 57.12, 57.375], rtol=1e-6)


@pytest.mark.parametrize("labels", [None, "labels.txt"])
def test_the_output_names_the_file_with_the_classes_if_there_is_one(labels):
    found = field(described(True, 3, labels), 3, first)
    assert field(found, 0, text) == "probabilities"
    file = field(found, 6, first)
    if labels is None:
        assert file is None
    else:
        assert (field(file, 0, text), field(file, 2, byte)) == (labels, 2)
