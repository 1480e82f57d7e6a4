"""The curves of a run: metrics.jsonl, and the same for TensorBoard."""

from typing import Any

import numpy as np
from clu import metric_writers

from mnv2.runtime.files import append_line, keep_lines, read_lines, to_json
from mnv2.runtime.layout import METRICS
from mnv2.runtime.processes import is_writer
from mnv2.runtime.storage import AnyPath, Mirror, is_object
from mnv2.training.settings import Settings


class MetricsLog:
    """Writes the metrics of one run. With several processes, only one of them writes."""

    def __init__(self, folder: AnyPath):
        self._folder = folder
        self._mirror = Mirror(folder)
        self._path = self._mirror.here / METRICS
        self._tensorboard: metric_writers.MetricWriter = metric_writers.MultiWriter(())

    def resume(self, step: int, settings: Settings) -> None:
        """Starts after `step`: drops what was written of later steps, which are done again.

        TensorBoard's events cannot be dropped one by one, so they are written again from the lines
        that stay: each step is in its curves once.
        """
        if is_writer():
            self._mirror.fetch(METRICS)
            keep_lines(self._path, lambda values: values["step"] <= step)
            for old in self._folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._tensorboard = metric_writers.SummaryWriter(str(self._path.parent))
            for values in read_lines(self._path):
                self._tensorboard.write_scalars(values.pop("step"), _scalars(values))
        self._tensorboard.write_hparams(_hyperparameters(settings))
        self.store()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes values by name. TensorBoard does not get the numbers of examples.

        Raises UserError, and writes nothing, for a value that is not finite.
        """
        line = to_json({"step": step, **values})
        self._tensorboard.write_scalars(step, _scalars(values))
        if is_writer():
            append_line(self._path, line)
        if self._mirror.due():
            self.store()

    def write_images(self, step: int, name: str, images: np.ndarray) -> None:
        """Shows images (n h w c, in [0, 1]) in TensorBoard."""
        self._tensorboard.write_images(step, {name: images})

    def holds(self, step: int, name: str) -> bool:
        """Tells whether a value of that name was written for a step."""
        return any(line["step"] == step and name in line for line in read_lines(self._path))

    def flush(self) -> None:
        """Lets TensorBoard see everything that was written."""
        self._tensorboard.flush()
        self._mirror.store()

    def store(self) -> None:
        """Stores every line on an object store; in a local folder each has been since `write`.

        Must be called before a checkpoint is saved, so that none is ahead of its lines.
        """
        if is_object(self._folder):
            self.flush()

    def close(self) -> None:
        """Stores every line, and releases TensorBoard's resources."""
        self._tensorboard.close()
        self._mirror.close()


def _scalars(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith("/examples")}


def _hyperparameters(settings: Settings) -> dict[str, Any]:
    """Returns all fields of a run, as numbers, truth values and strings, for TensorBoard."""
    return {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in settings.flat().items()
    }
