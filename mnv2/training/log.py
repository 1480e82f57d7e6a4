"""The curves of a run: metrics.jsonl, and the same for TensorBoard."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from mnv2.preprocess.resizing import to_uint8
from mnv2.runtime.events import PATTERN, EventFile, png_of
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

TIME = "time"  # of a line of metrics.jsonl, in seconds since 1970


class MetricsLog:
    """Writes the metrics of one run. With several processes, only one of them writes."""

    def __init__(self, folder: AnyPath):
        self.folder = folder
        self._growing = Growing(folder)
        self._path = self._growing.here / METRICS
        self._events: EventFile | None = None

    def resume(self, step: int, hyperparameters: Mapping[str, Any]) -> None:
        """Starts after `step`: drops what was written of later steps, which are done again.

        `hyperparameters` tell this run from others in TensorBoard, by name. Its events cannot be
        dropped one by one, so they are written again from the lines that stay: each step is in its
        curves once, at the time when it was measured.
        """
        if is_writer():
            self._growing.fetch(METRICS)
            keep_lines(self._path, lambda values: values["step"] <= step)
            for old in matches(self.folder, PATTERN):
                old.unlink()
            self._events = EventFile(self._growing.here)
            for line in read_lines(self._path):
                line_step, when = line.pop("step"), line.pop(TIME, None)  # older runs lack a time
                self._events.scalars(line_step, _scalars(line), when)
            self._events.hyperparameters(hyperparameters)
        self.store()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes values by name. TensorBoard does not get the numbers of examples.

        Raises UserError, and writes nothing, for a value that is not finite.
        """
        line = to_json({"step": step, TIME: round(time.time(), 3), **values})
        if self._events:
            self._events.scalars(step, _scalars(values))
            append_line(self._path, line)

    def write_images(self, step: int, name: str, images: np.ndarray) -> None:
        """Shows images (n h w c, values in [0, 255]) in TensorBoard."""
        if self._events:
            self._events.images(
                step, name, [png_of(to_uint8(image)) for image in images], images.shape[1:3]
            )

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
        if self._events:
            self._events.flush()
        self._growing.store()

    def close(self) -> None:
        """Stores every line, and closes the files."""
        if self._events:
            self._events.close()
        self._growing.close()


def _scalars(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith("/examples")}
