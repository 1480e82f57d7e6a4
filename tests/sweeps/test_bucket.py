"""A sweep in a bucket, in processes of their own: one is killed, another one resumes."""

import json
import os
import signal
import time

import ml_collections
import numpy as np
import pytest
from orbax.checkpoint.utils import checkpoint_steps

from mnv2.data.datasets import TfdsDataset
from mnv2.runtime.files import as_path, check_can_be_written, given_folder, read_lines
from mnv2.runtime.layout import CHECKPOINTS, METRICS, RESULT
from mnv2.runtime.packed_arrays import read_newest
from mnv2.status import statuses
from mnv2.sweeps import figure
from mnv2.sweeps.report import write_report
from mnv2.sweeps.run import train_here
from mnv2.sweeps.statistics import rows
from mnv2.sweeps.workdir import load
from mnv2.training import log
from tests import emulator
from tests.commands import SERVER

# What was measured with a clock, and differs from one execution to the next.
MEASURED = ("time", "train/images_per_second", "train/waiting_for_input")
TIMES = ("images_per_second", "train_seconds", "waiting_for_input", "first_step_seconds")


@pytest.fixture
def two_runs(tiny_config, fashion_mnist):
    """Two seeds, whose steps are the same program, so that it is compiled once."""
    tiny_config.arms = (("a", {"data.train": "pad_crop|flip"}),)
    tiny_config.baseline, tiny_config.seeds, tiny_config.panels = "a", 2, ()
    tiny_config.duration, tiny_config.checkpoint_every = "7 steps", "3 steps"
    return tiny_config


def train(values: dict, environment: dict[str, str], workdirs: list[str]) -> None:
    """Executes a sweep with 100 test pictures in one workdir after another.

    The process that gets one workdir is killed at step 5 of the second run.
    """
    # One device, whose steps compile faster.
    os.environ.update(environment, XLA_FLAGS="--xla_backend_optimization_level=0")
    of_split, append_line, fifth = TfdsDataset.tfds_range, log.append_line, []

    def capped(dataset, split):
        name, begin, end = of_split(dataset, split)
        return name, begin, min(end, begin + 100) if split == "test" else end

    def killing(path, line):
        append_line(path, line)
        if json.loads(line)["step"] == 5:
            fifth.append(line)
        if len(workdirs) == 1 and len(fifth) == 2:
            saved = as_path(workdirs[0]) / "a/1" / CHECKPOINTS
            while 3 not in checkpoint_steps(saved):  # it is written in the background
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    TfdsDataset.tfds_range, log.append_line = capped, killing
    for workdir in workdirs:
        folder = given_folder(workdir, "--workdir")
        check_can_be_written(folder, "--workdir")
        train_here(ml_collections.ConfigDict(values), folder)


def without(values: dict, names: tuple[str, ...]) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def test_a_sweep_in_a_bucket_that_is_killed_ends_as_one_in_a_local_folder(
    two_runs, bucket, emulated_storage, tmp_path, capsys
):
    of_both = two_runs.to_dict(), emulator.environment(emulated_storage)
    stored = as_path(f"{bucket}/killed/runs")
    first = SERVER.Process(target=train, args=(*of_both, [str(stored)]))
    second = SERVER.Process(target=train, args=(*of_both, [str(tmp_path), str(stored)]))
    first.start()
    first.join()
    assert first.exitcode == -signal.SIGKILL
    assert [one.state for one in statuses(stored)] == ["done", "stopped"]
    lines = [line["step"] for line in read_lines(stored / "a/1" / METRICS)]
    assert max(lines) >= 3  # as the checkpoint
    assert checkpoint_steps(stored / "a/1" / CHECKPOINTS) == [3]
    assert len(list((stored / "a/1").glob("events.out.tfevents.*"))) == 1
    assert not (stored / "a/1" / RESULT).exists()
    second.start()
    second.join()
    assert second.exitcode == 0
    for run in ("a/0", "a/1"):
        ours, theirs = stored / run, tmp_path / run
        state, expected = (read_newest(x / CHECKPOINTS) for x in (ours, theirs))
        assert state.keys() == expected.keys()
        for name, array in state.items():
            np.testing.assert_array_equal(array, expected[name], strict=True)
        lines, wanted = (
            [without(line, MEASURED) for line in read_lines(x / METRICS)] for x in (ours, theirs)
        )
        assert lines == wanted
        result, right = (
            without(json.loads((x / RESULT).read_text()), TIMES) for x in (ours, theirs)
        )
        assert result == right
        assert len(list(ours.glob("events.out.tfevents.*"))) == 1
        assert not (ours / ".lock").exists()
    assert [one.state for one in statuses(stored)] == ["done", "done"]
    write_report(stored)
    assert f"report    {stored}/report.md" in capsys.readouterr().out
    report, same = (
        [row.rsplit(",", 2)[0] for row in (folder / "report.csv").read_text().splitlines()]
        for folder in (stored, tmp_path)
    )
    assert report == same
    assert "Not finished" not in (stored / "report.md").read_text()
    sweep = load(stored)  # of one arm, which the report does not draw
    figure.draw(sweep, rows(sweep), stored / "report.png")
    assert (stored / "report.png").read_bytes()[1:4] == b"PNG"
    figure.write_to_tensorboard(stored / "report.png", stored / "report")
    assert len(list((stored / "report").glob("events.out.tfevents.*"))) == 1
