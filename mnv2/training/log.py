"""The curves of a run: metrics.jsonl, and the same for TensorBoard."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from clu import metric_writers
from flax.traverse_util import flatten_dict

from mnv2.runtime.files import append_line, keep_lines
from mnv2.runtime.layout import METRICS
from mnv2.runtime.processes import is_writer
from mnv2.training.settings import Settings


class MetricsLog:
    """Writes the metrics of one run. With several processes, only one of them writes."""

    def __init__(self, folder: Path):
        self._path = folder / METRICS
        self._tensorboard = (
            metric_writers.SummaryWriter(str(folder))
            if is_writer()
            else metric_writers.MultiWriter(())
        )

    def resume(self, step: int, settings: Settings) -> None:
        """Starts after `step`: drops what was written of later steps, which are done again."""
        if is_writer():
            keep_lines(self._path, lambda line: json.loads(line)["step"] <= step)
        self._tensorboard.write_hparams(_hyperparameters(settings))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes values by name. TensorBoard does not get the numbers of examples."""
        scalars = {name: x for name, x in values.items() if not name.endswith("/examples")}
        self._tensorboard.write_scalars(step, scalars)
        if is_writer():
            append_line(self._path, json.dumps({"step": step, **values}))

    def write_images(self, step: int, name: str, images: np.ndarray) -> None:
        """Shows images (n h w c, in [0, 1]) in TensorBoard."""
        self._tensorboard.write_images(step, {name: images})

    def holds(self, step: int, name: str) -> bool:
        """Tells whether a value of that name was written for a step."""
        lines = map(json.loads, self._path.read_text().splitlines())
        return any(line["step"] == step and name in line for line in lines)

    def flush(self) -> None:
        """Lets TensorBoard see everything that was written."""
        self._tensorboard.flush()

    def close(self) -> None:
        self._tensorboard.close()


def _hyperparameters(settings: Settings) -> dict[str, Any]:
    """Returns what TensorBoard's HParams tab shows of a run: numbers, truth values and strings."""
    names = ["model", "optimization", "duration", "batch_size", "label_smoothing", "seed"]
    values = dataclasses.asdict(settings)
    if settings.weights is not None:
        names += ["weights", "start"]
    flat = flatten_dict({name: values[name] for name in names}, sep=".")
    return {
        name: value if isinstance(value, int | float | str) else str(value)
        for name, value in flat.items()
    }
