import csv
import json

import matplotlib.image
import numpy as np
import pytest
from scipy import stats

from configs import v2_ablation
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_json
from mnv2.sweeps.report import write_report
from mnv2.sweeps.statistics import rows
from mnv2.sweeps.workdir import load

ACCURACIES = {
    "linear": [0.88, 0.87, 0.89],
    "relu6": [0.86, 0.84, 0.865],
    "t_1": [0.80],
    "width_0.25": [0.85],
}


@pytest.fixture
def workdir(tmp_path):
    config = v2_ablation.get_config("quick").to_dict()
    environment = {"devices": ["cpu"], "machine": "Linux", "packages": {"jax": "1"}, "commit": "c"}
    write_json(tmp_path / "sweep.json", {"config": config, "environment": environment})
    for arm, values in ACCURACIES.items():
        for seed, accuracy in enumerate(values):
            result = {
                "test": {"accuracy": accuracy},
                "parameters": 408_650,
                "multiply_adds": 2_784_672,
                "images_per_second": 3000.0 + seed,
                "train_seconds": 30.0,
            }
            write_json(tmp_path / arm / str(seed) / "result.json", result)
    return tmp_path


def row(workdir, arm):
    return next(row for row in rows(load(workdir)) if row.arm == arm)


def test_the_interval_is_students_over_seeds(workdir):
    values = 100 * np.asarray(ACCURACIES["linear"])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    estimate = row(workdir, "linear").accuracy
    assert estimate.mean == pytest.approx(88.0)
    assert estimate.half_width == pytest.approx((high - low) / 2)


def test_the_difference_is_paired_by_seed(workdir):
    differences = 100 * (np.asarray(ACCURACIES["relu6"]) - np.asarray(ACCURACIES["linear"]))
    interval = stats.ttest_1samp(differences, 0).confidence_interval()
    estimate = row(workdir, "relu6").difference
    assert estimate.mean == pytest.approx(differences.mean())
    assert estimate.half_width == pytest.approx((interval.high - interval.low) / 2)


def test_one_seed_has_no_interval_and_the_baseline_no_difference(workdir):
    assert row(workdir, "t_1").accuracy.half_width is None
    assert row(workdir, "t_1").difference.mean == pytest.approx(-8.0)
    assert row(workdir, "linear").difference is None


def test_the_report_is_printed_and_written(workdir, capsys):
    write_report(workdir)
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("arm", *ACCURACIES))]
    assert len(table) == 5
    assert max(map(len, table)) <= 80
    assert "88.00 ± 2.48" in table[1]
    markdown = (workdir / "report.md").read_text()
    assert "| relu6 | 0.41 M | 2.78 M | 85.50 ± 3.29 | -2.50 ± 1.24 | 3 |" in markdown
    with (workdir / "report.csv").open() as file:
        found = {line["arm"]: line for line in csv.DictReader(file)}
    assert float(found["relu6"]["difference"]) == pytest.approx(-2.5)
    assert found["t_1"]["accuracy_ci95"] == ""
    assert matplotlib.image.imread(workdir / "report.png").shape[1] > 1000
    assert list((workdir / "report").glob("events.out.tfevents.*"))


def test_what_is_not_finished_is_named(workdir, capsys):
    (workdir / "t_1" / "0" / "result.json").unlink()
    (workdir / "linear" / "1" / "result.json").unlink()
    write_report(workdir)
    assert "not finished: linear/1, t_1/0" in capsys.readouterr().out
    assert row(workdir, "relu6").difference.count == 2


def test_a_folder_without_runs_is_refused(workdir, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="is not the --workdir of any runs"):
        write_report(empty)
    (empty / "sweep.json").write_text(json.dumps(json.loads((workdir / "sweep.json").read_text())))
    with pytest.raises(UserError, match=r"no run in .* is finished yet"):
        write_report(empty)
