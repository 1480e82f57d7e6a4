import sys

import pytest

from experiments.speed import loading
from experiments.speed.frameworks.tasks import Task
from experiments.speed.frameworks.turns import AS_RUN, Row
from mnv2.runtime.errors import UserError


def test_the_ratio_is_the_median_of_those_of_the_rounds():
    task = Task("load", augmentation="random")
    ours = Row(task, AS_RUN, "mnv2", (200.0, 300.0, 400.0), 0)
    theirs = Row(task, AS_RUN, "PyTorch", (100.0, 200.0, 100.0), 0)
    assert loading.line_of([ours, theirs]) == ("random", "300", "100", "2.00 (1.50-4.00)")


def test_without_torchvision_nothing_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "installed", lambda _: ["mnv2"])
    monkeypatch.setattr(sys, "argv", ["loading", "--out", str(tmp_path / "never")])
    with pytest.raises(UserError, match="make throughput installs it"):
        loading.main()
    assert not list(tmp_path.iterdir())
