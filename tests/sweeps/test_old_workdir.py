"""A workdir that version 0.2.0 made: one run is finished, the other one was stopped at step 4."""

import json
import tarfile
from pathlib import Path

import pytest

from mnv2 import pretrained
from mnv2.runtime.errors import UserError
from mnv2.status import statuses
from mnv2.sweeps.report import write_report
from mnv2.sweeps.run import train_here
from mnv2.sweeps.workdir import load
from mnv2.training.evaluation import evaluate_weights
from tests.conftest import leave_test_pictures

DATA = Path(__file__).parent / "data/workdir_0.2.0.tar.xz"


@pytest.fixture
def workdir(tmp_path):
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "workdir"


@pytest.fixture
def config(tiny_config):
    """What made the workdir, in the fields of today."""
    tiny_config.model.repeats, tiny_config.data.validation = (1, 1, 1, 1, 0, 0, 0), 500
    tiny_config.duration, tiny_config.checkpoint_every = "6 steps", "2 steps"
    tiny_config.eval_every = "3 steps"
    tiny_config.arms = (("a", {}), ("b", {"model.bottleneck": "relu6"}))
    tiny_config.baseline, tiny_config.panels, tiny_config.seeds = "a", (), 1
    return tiny_config


@pytest.fixture
def as_many_test_pictures(monkeypatch):
    """Leaves the 500 pictures of the test split that it was made with."""
    leave_test_pictures(monkeypatch, 500)


def test_it_is_reported_and_its_status_is_known(workdir, capsys):
    assert load(workdir).config["optimization"]["momentum"] == 0.9
    states = {one.name: (one.state, one.detail) for one in statuses(workdir)}
    assert states == {"a/0": ("done", "8.20 %"), "b/0": ("stopped", "step 5 of 6")}
    write_report(workdir)
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("a "))
    assert row.split() == ["a", "0.03", "M", "0.38", "M", "8.20", "1"]


def test_its_finished_run_is_evaluated_with_the_same_numbers(
    workdir, fashion_mnist, as_many_test_pictures
):
    loaded = pretrained.load(str(workdir / "a/0"))
    found = evaluate_weights(loaded, fashion_mnist, "test", 500).summary
    recorded = json.loads((workdir / "a/0/result.json").read_text())["test"]
    assert found == pytest.approx(recorded, rel=1e-4)


def test_its_unfinished_run_is_left_to_that_version(workdir, config):
    with pytest.raises(UserError, match=r"holds runs with .* instead of .*; choose another --work"):
        train_here(config, workdir)
    assert not (workdir / "b/0/result.json").exists()
