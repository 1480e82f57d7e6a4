import csv
import re
import sys

import numpy as np
import pytest
from PIL import Image

from experiments.common import photographs
from experiments.speed import throughput
from experiments.speed.frameworks import steps
from experiments.speed.frameworks.tasks import Task
from mnv2.runtime.errors import UserError


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["throughput", *map(str, arguments)])
    throughput.main()


FEW = ("--rounds", "2", "--seconds", "0", "--only", "mnv2")


@pytest.fixture
def quick_task(monkeypatch):
    task = Task("infer", width=0.35, size=32, batch=3)
    monkeypatch.setattr(throughput, "TASKS", (task,))


def test_frameworks_take_turns_and_results_are_written(quick_task, monkeypatch, tmp_path, capsys):
    run(monkeypatch, *FEW, "--out", tmp_path)
    assert "infer V2 0.35, 32 px, batch 3, " in capsys.readouterr().out
    with (tmp_path / "throughput.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["framework"], row["batch"]) for row in rows] == [("mnv2", "3")]
    for row in rows:
        assert 0 < float(row["lowest"]) <= float(row["images_per_second"]) <= float(row["highest"])
        assert int(row["peak_mib"]) > 50
    assert (tmp_path / "throughput.png").stat().st_size > 5_000
    table = (tmp_path / f"{tmp_path.name}_infer_32_3.md").read_text().splitlines()
    assert table[0] == "|  | images/s | memory, MiB |"
    assert re.fullmatch(r"\| mnv2 \| [\d.,]+ \([\d.,]+-[\d.,]+\) \| [\d,]+ \|", table[2])


def test_a_framework_that_dies_is_left_out(quick_task, monkeypatch, tmp_path, capsys):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho true\nread turn\n")  # it is ready, and ends in its turn
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match="no framework could be measured"):
        run(monkeypatch, *FEW, "--out", tmp_path)
    assert "mnv2 is left out: it died" in capsys.readouterr().err


def test_a_framework_that_is_not_installed_is_left_out(monkeypatch, capsys):
    lacking = steps.CONTENDERS["PyTorch"]._replace(packages=("no_such_package",))
    monkeypatch.setitem(steps.CONTENDERS, "PyTorch", lacking)
    assert steps.installed(("PyTorch", "mnv2")) == ["mnv2"]
    assert "PyTorch is left out: not installed: no_such_package" in capsys.readouterr().out


def test_an_unknown_framework_is_refused(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="did you mean 'PyTorch'"):
        run(monkeypatch, "--only", "PyTroch", "--out", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_pictures_are_crops_of_a_photograph_in_sizes_of_imagenet(tmp_path):
    photographs.write(tmp_path, count=3)
    first = (tmp_path / "train" / "photographs" / "0.jpg").read_bytes()
    photographs.write(tmp_path, count=5)  # does nothing, since they exist
    pictures = sorted(tmp_path.glob("train/*/*.jpg"))
    assert len(pictures) == 3
    assert pictures[0].read_bytes() == first
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size in photographs.SIZES
            assert np.std(np.asarray(picture)) > 20


def test_pictures_are_read_as_for_training(tmp_path):
    photographs.write(tmp_path, count=8)
    task = Task("load", size=32, batch=8, pictures=str(tmp_path))
    read = steps.mnv2(task)
    for _ in range(2):
        batch = read()
    assert batch.shape == (8, 32, 32, 3)
    assert np.ptp(batch) > 100
