"""The curves of a run: metrics.jsonl, and the same for TensorBoard."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from clu import metric_writers
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.scalar.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from mnv2.runtime.files import (
    AnyPath,
    Growing,
    append_line,
    keep_lines,
    matches,
    read_lines,
    to_json,
)
from mnv2.runtime.layout import METRICS
from mnv2.runtime.processes import is_writer
from mnv2.runtime.terminal import printable

TIME = "time"  # of a line of metrics.jsonl, in seconds since 1970


class MetricsLog:
    """Writes the metrics of one run. With several processes, only one of them writes."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self._growing = Growing(folder)
        self._path = self._growing.here / METRICS
        self._tensorboard: metric_writers.MetricWriter = metric_writers.MultiWriter(())

    def resume(self, step: int, hyperparameters: Mapping[str, Any]) -> None:
        """Starts after `step`: drops what was written of later steps, which are done again.

        `hyperparameters` tell this run from others in TensorBoard, by name.
        TensorBoard's events cannot be dropped one by one, so they are written again from the lines
        that stay: each step is in its curves once, at the time when it was measured.
        """
        if is_writer():
            self._growing.fetch(METRICS)
            keep_lines(self._path, lambda values: values["step"] <= step)
            for old in matches(self.folder, "events.out.tfevents.*"):
                old.unlink()
            self._write_again()
            self._tensorboard = metric_writers.SummaryWriter(str(self._path.parent))
        shown = {name: _shown(value) for name, value in hyperparameters.items()}
        self._tensorboard.write_hparams(shown)
        self.store()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes values by name. TensorBoard does not get the numbers of examples.

        Raises UserError, and writes nothing, for a value that is not finite.
        """
        line = to_json({"step": step, TIME: round(time.time(), 3), **values})
        self._tensorboard.write_scalars(step, _scalars(values))
        if is_writer():
            append_line(self._path, line)

    def write_images(self, step: int, name: str, images: np.ndarray) -> None:
        """Shows images (n h w c, in [0, 1]) in TensorBoard."""
        self._tensorboard.write_images(step, {name: images})

    def _write_again(self) -> None:
        """Writes an event for each line. clu's writer would give all of them the present time."""
        lines = read_lines(self._path)
        if not lines:
            return
        kind = create_summary_metadata(display_name="", description="")
        writer = EventFileWriter(str(self._path.parent))
        for line in lines:
            step, when = line.pop("step"), line.pop(TIME, None)  # lines of older runs lack a time
            values = [
                Summary.Value(tag=name, tensor=make_tensor_proto(np.float32(value)), metadata=kind)
                for name, value in _scalars(line).items()
            ]
            event = Event(step=step, wall_time=when or time.time(), summary=Summary(value=values))
            writer.add_event(event)
        writer.close()

    def evaluation(self, step: int, split: str) -> dict[str, float]:
        """Returns what was written of an evaluation after a step, by name; {} if there is none."""
        prefix = f"{split}/"
        for line in read_lines(self._path):
            if line["step"] == step and f"{prefix}loss" in line:
                named = {k: v for k, v in line.items() if k.startswith(prefix)}
                return {name.removeprefix(prefix): value for name, value in named.items()}
        return {}

    def store(self) -> None:
        """Writes everything to the run's folder, where TensorBoard sees it.

        Must be called before a checkpoint is saved, so that none is ahead of its lines.
        """
        self._tensorboard.flush()
        self._growing.store()

    def close(self) -> None:
        """Stores every line, and releases TensorBoard's resources."""
        self._tensorboard.close()
        self._growing.close()


def _scalars(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith("/examples")}


def _shown(value: Any) -> float | str:
    """Returns a number, a truth value or a text, which TensorBoard can show."""
    return value if isinstance(value, int | float) else printable(value)
