import io
import itertools

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_lines
from mnv2.runtime.layout import METRICS
from mnv2.training import log


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_logged(tmp_path, value):
    curves = log.MetricsLog(tmp_path)
    curves.resume(0, {})
    curves.write(1, {"train/loss": 0.5})
    with pytest.raises(UserError, match=f"train/loss is {value}, which is not a finite number"):
        curves.write(2, {"train/loss": value})
    curves.close()
    (line,) = read_lines(tmp_path / METRICS)
    assert line == {"step": 1, "time": line["time"], "train/loss": 0.5}


def test_a_resumed_run_has_each_step_once_in_tensorboard_at_its_own_time(tmp_path, monkeypatch):
    from tensorboard.util.tensor_util import make_ndarray

    hours = itertools.count(1_000_000_000, 3600)
    monkeypatch.setattr(log.time, "time", lambda: float(next(hours)))
    first = log.MetricsLog(tmp_path)
    first.resume(0, {})
    for step in (10, 20, 30):
        first.write(step, {"train/loss": 1 / step})
    first.close()  # killed after step 30, with a checkpoint of step 20
    times = [line["time"] for line in read_lines(tmp_path / METRICS)]
    assert times[1] - times[0] >= 3600
    monkeypatch.undo()
    second = log.MetricsLog(tmp_path)
    second.resume(20, {})
    for step in (30, 40):
        second.write(step, {"train/loss": 2 / step})
    second.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = [
        (event.step, float(make_ndarray(event.tensor_proto)))
        for event in events.Tensors("train/loss")
    ]
    assert dict(found) == pytest.approx({10: 0.1, 20: 0.05, 30: 2 / 30, 40: 0.05})
    assert len(found) == 4
    assert [event.wall_time for event in events.Tensors("train/loss")][:2] == times[:2]


def test_tensorboard_has_the_hyperparameters_and_the_pictures_of_a_run(tmp_path):
    curves = log.MetricsLog(tmp_path)
    curves.resume(0, {"arm": "relu6", "model.width": 0.5, "data.train": "flip"})
    curves.write_images(1, "train/input", np.full((2, 3, 4, 1), 200.0, np.float32))
    curves.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Tensors("train/input")
    width, height, *pngs = image.tensor_proto.string_val
    assert (image.step, width, height, len(pngs)) == (1, b"4", b"3", 2)
    assert np.asarray(Image.open(io.BytesIO(pngs[1]))).tolist() == [[200] * 4] * 3
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert {name: value.WhichOneof("kind") for name, value in found.items()} == {
        "arm": "string_value", "model.width": "number_value", "data.train": "string_value"
    }  # fmt: skip
