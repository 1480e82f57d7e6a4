"""TensorBoard's files of events, written without TensorFlow, whose import takes three seconds."""

import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import summary_v2
from tensorboard.plugins.image import metadata as of_images
from tensorboard.plugins.scalar import metadata as of_scalars
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from mnv2.runtime.files import AnyPath
from mnv2.runtime.terminal import printable

PATTERN = "events.out.tfevents.*"  # of the names of such files


class EventFile:
    """A new file of events in a folder, which must exist."""

    def __init__(self, folder: AnyPath):
        self._file = (folder / PATTERN.replace("*", str(time.time_ns()))).open("wb")
        self._write(Event(file_version="brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float], when: float | None = None) -> None:
        """Writes numbers by name; `when` is in seconds since 1970, by default now."""
        kind = of_scalars.create_summary_metadata(display_name="", description="")
        shown = [
            Summary.Value(tag=name, tensor=make_tensor_proto(np.float32(value)), metadata=kind)
            for name, value in values.items()
        ]
        self._write(Event(step=step, summary=Summary(value=shown)), when)

    def images(self, step: int, name: str, pngs: Sequence[bytes], size: tuple[int, int]) -> None:
        """Writes pictures of one size, (height, width), as the content of PNG files."""
        kind = of_images.create_summary_metadata(display_name="", description="")
        height, width = (str(side).encode() for side in size)
        tensor = make_tensor_proto(np.array([width, height, *pngs], object))
        value = Summary.Value(tag=name, tensor=tensor, metadata=kind)
        self._write(Event(step=step, summary=Summary(value=[value])))

    def hyperparameters(self, values: Mapping[str, Any]) -> None:
        """Writes what tells a run from others: numbers, truth values, and all else as text."""
        shown = {k: x if isinstance(x, int | float) else printable(x) for k, x in values.items()}
        self._write(Event(summary=summary_v2.hparams_pb(shown)))

    def _write(self, event: Any, when: float | None = None) -> None:
        event.wall_time = when or time.time()
        RecordWriter(self._file).write(event.SerializeToString())

    def flush(self) -> None:
        """Lets others see what was written."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def png_of(picture: np.ndarray) -> bytes:
    """Returns a picture (h w c, uint8) as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, "PNG")
    return content.getvalue()
