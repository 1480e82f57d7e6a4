import csv
import json
import shutil
import threading

import matplotlib.image
import numpy as np
import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import v2_ablation
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import read_json, write_json
from mnv2.runtime.terminal import warn_once
from mnv2.sweeps import figure
from mnv2.sweeps.plan import with_arms
from mnv2.sweeps.report import write_report
from mnv2.sweeps.statistics import Estimate, compare_all, prediction_interval, rows
from mnv2.sweeps.workdir import load

ACCURACIES = {
    "linear": [0.88, 0.87, 0.89],
    "relu6": [0.86, 0.84, 0.865],
    "t_1": [0.80],
    "width_0.25": [0.85],
}


def set_arms(workdir, **changes):
    """Replaces what arms change, or only their number of seeds."""
    description = read_json(workdir / "sweep.json", "")
    arms = dict(description["config"]["arms"])
    for arm, of in changes.items():
        arms[arm] = {**arms[arm], "seeds": of} if isinstance(of, int) else of
    description["config"]["arms"] = list(arms.items())
    write_json(workdir / "sweep.json", description)


@pytest.fixture
def workdir(tmp_path):
    config = with_arms(v2_ablation.get_config("quick")).to_dict()
    environment = {"devices": ["cpu"], "machine": "Linux", "packages": {"jax": "1"}, "commit": "c"}
    write_json(tmp_path / "sweep.json", {"config": config})
    set_arms(tmp_path, **{arm: len(values) for arm, values in ACCURACIES.items()})
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
            write_json(tmp_path / arm / str(seed) / "environment.json", environment)
    return tmp_path


@pytest.fixture(autouse=True)
def nothing_said_yet():
    warn_once.cache_clear()


def row(workdir, arm):
    return next(row for row in rows(load(workdir)) if row.arm == arm)


def test_the_interval_is_students_over_seeds(workdir):
    values = 100 * np.asarray(ACCURACIES["linear"])
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    estimate = row(workdir, "linear").accuracy
    assert estimate.mean == pytest.approx(88.0)
    assert estimate.half_width == pytest.approx((high - low) / 2)


def test_fewer_seeds_in_the_config_are_fewer_in_the_report(workdir, capsys):
    set_arms(workdir, linear=2)
    assert row(workdir, "linear").accuracy.count == 2
    assert "linear/2/result.json is left out: the config has no seed 2" in capsys.readouterr().err


def test_two_seeds_have_no_interval():
    assert prediction_interval([1.0, 2.0]) is None
    assert prediction_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    assert Estimate.of([1.0, 1.0]) == Estimate(1.0, None, 2)
    assert Estimate.of([1.0, 1.0, 1.0]) == Estimate(1.0, 0.0, 3)


def test_compared_with_one_arm_the_adjusted_interval_is_students_with_a_common_spread(workdir):
    ours, theirs = (100 * np.asarray(ACCURACIES[arm]) for arm in ("linear", "relu6"))
    interval = stats.ttest_ind(theirs, ours).confidence_interval()
    together = compare_all(load(workdir))
    half = (interval.high - interval.low) / 2
    found = together.differences["relu6"]
    assert (found.mean, found.half_width) == (-2.5, pytest.approx(half, rel=0.01))


def test_the_more_arms_are_compared_the_wider_are_their_intervals(workdir):
    one = compare_all(load(workdir)).differences["relu6"].half_width
    set_arms(workdir, **{"t_1": 3, "width_0.25": 3})
    for arm in ("t_1", "width_0.25"):
        shutil.rmtree(workdir / arm)
        shutil.copytree(workdir / "relu6", workdir / arm)
    several = compare_all(load(workdir)).differences
    assert several.keys() == {"relu6", "t_1", "width_0.25"}
    freedom, spread = 8, np.sqrt((np.var([88, 87, 89]) + 3 * np.var([86, 84, 86.5])) * 3 / 8)
    # Dunnett's table (1955) has 2.88 for three arms and 8 degrees of freedom.
    expected = 2.88 * spread * np.sqrt(2 / 3)
    assert several["relu6"].half_width == pytest.approx(expected, rel=0.01)
    assert expected > stats.t.ppf(0.975, freedom) * spread * np.sqrt(2 / 3)
    assert one > 0


def test_a_difference_that_is_called_detectable_is_found_in_four_of_five_experiments(workdir):
    detectable = compare_all(load(workdir)).detectable[3]
    ours, theirs = (100 * np.asarray(ACCURACIES[arm]) for arm in ("linear", "relu6"))
    spread = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 2)
    draws = np.random.default_rng(0).normal(0, spread, (2, 20_000, 3))
    found = stats.ttest_ind(draws[0] + detectable, draws[1], axis=1).pvalue < 0.05
    assert 0.75 < found.mean() < 0.85


def test_the_difference_is_that_of_the_means_of_all_seeds(workdir, capsys, no_figure):
    shutil.copytree(workdir / "relu6" / "2", workdir / "relu6" / "3")
    set_arms(workdir, relu6=4)
    found = row(workdir, "relu6").difference
    assert found == compare_all(load(workdir)).differences["relu6"]
    assert found.mean == pytest.approx(np.mean([86, 84, 86.5, 86.5]) - 88)
    write_report(workdir)
    said = "difference: to linear, of the means of all seeds; ± for all arms at once"
    assert said in capsys.readouterr().out
    assert said in (workdir / "report.md").read_text()


def test_arms_without_any_spread_have_no_adjusted_interval(workdir):
    for arm in ("linear", "relu6"):
        for seed in range(3):
            change(workdir / arm / str(seed) / "result.json", test={"accuracy": 0.5})
    assert compare_all(load(workdir)) is None
    assert row(workdir, "relu6").difference == Estimate(0.0, None, 3)
    write_report(workdir)


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"model.expansion": 1.0, "model.width": 0.5}, "model.expansion 1.0, model.width 0.5."),
        ({"duration": "60 steps"}, "duration 60 steps."),
    ],
)
def test_an_arm_is_named_that_differs_in_several_fields_or_in_others_than_the_note_says(
    workdir, changes, note
):
    set_arms(workdir, t_1={**changes, "seeds": 1})
    assert f"t_1: {note}" in notes(workdir)


def test_a_result_of_another_split_is_damaged(workdir):
    result = read_json(workdir / "t_1/0/result.json", "")
    result["validation"] = result.pop("test")
    write_json(workdir / "t_1/0/result.json", result)
    change(workdir / "relu6/0/result.json", steps="500")
    damaged = load(workdir).damaged
    assert "has no accuracy on test" in damaged["t_1/0"]
    assert "steps must be a whole number, 0 or more, got '500'" in damaged["relu6/0"]


def test_names_with_signs_of_formulas_are_drawn_as_they_are(workdir):
    config = read_json(workdir / "sweep.json", "")["config"]
    change(
        workdir / "sweep.json", config={**config, "panels": [["a$_$", "arm", ["linear", "t_1"]]]}
    )
    write_report(workdir)


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
    assert "| relu6 | 0.41 M | 2.78 M | 85.50 ± 3.29 | -2.50 ± 2.66 | 3 |" in markdown
    with (workdir / "report.csv").open() as file:
        found = {line["arm"]: line for line in csv.DictReader(file)}
    assert float(found["relu6"]["difference"]) == pytest.approx(-2.5)
    assert found["t_1"]["accuracy_ci95"] == ""
    assert matplotlib.image.imread(workdir / "report.png").shape[1] > 1000
    events = EventAccumulator(str(workdir / "report")).Reload()
    (shown,) = events.Tensors("report")
    width, _, png = shown.tensor_proto.string_val
    assert png == (workdir / "report.png").read_bytes()
    assert int(width) > 1000


def test_one_arm_has_no_figure(workdir, capsys):
    for arm in ("relu6", "t_1", "width_0.25"):
        shutil.rmtree(workdir / arm)
    write_report(workdir)
    assert not (workdir / "report.png").exists()
    assert f"{workdir}/report.md, report.csv\n" in capsys.readouterr().out


def test_what_is_not_finished_is_named(workdir, capsys, no_figure):
    (workdir / "t_1" / "0" / "result.json").unlink()
    (workdir / "linear" / "1" / "result.json").unlink()
    write_report(workdir)
    assert "not finished: linear/1, t_1/0" in capsys.readouterr().out
    write_report(workdir, ["t_1/0", "relu6/0"])  # what --only names
    assert "not finished: t_1/0\n" in capsys.readouterr().out


def test_runs_of_a_few_steps_say_that_they_mean_nothing(workdir, capsys, no_figure):
    write_report(workdir)
    assert "say nothing" not in capsys.readouterr().out
    change(workdir / "sweep.json", steps=dict.fromkeys(ACCURACIES, 30))
    write_report(workdir)
    assert "30 steps say nothing about the arms: only that all works" in capsys.readouterr().out


def test_a_folder_without_runs_is_refused(workdir, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="is not the --workdir of any runs"):
        write_report(empty)
    shutil.copy(workdir / "sweep.json", empty)
    with pytest.raises(UserError, match=r"no run in .* is finished yet"):
        write_report(empty)


def notes(workdir):
    write_report(workdir)
    return (workdir / "report.md").read_text().split("\n\n", 1)[1].splitlines()


def change(path, **values):
    write_json(path, {**json.loads(path.read_text()), **values})


def result_of(**test):
    numbers = ("parameters", "multiply_adds", "train_seconds", "images_per_second")
    return json.dumps({"test": test, **dict.fromkeys(numbers, 1)})


@pytest.mark.usefixtures("no_figure")
@pytest.mark.parametrize(
    "content",
    [
        *("", '{"test": {"accuracy": 0.9', "[]", '{"test": {"accuracy": 0.9}}', '{"test": 0.9}'),
        result_of(accuracy=float("nan")),
        result_of(accuracy=0.9, loss=float("nan")),
        *(result_of(accuracy="0.9"), result_of(accuracy=90.0)),
    ],
)
def test_a_result_that_is_damaged_is_named_and_not_averaged(workdir, capsys, content):
    (workdir / "relu6/1/result.json").write_text(content)
    expected = (ACCURACIES["relu6"][0] + ACCURACIES["relu6"][2]) / 2
    assert row(workdir, "relu6").accuracy.mean == pytest.approx(100 * expected)
    assert "Left out, because the result is damaged: relu6/1." in notes(workdir)
    said = capsys.readouterr()
    assert said.err.startswith(f"warning: a run is left out: {workdir}/relu6/1/result.json is dam")
    assert said.err.count("\n") == 1
    assert "delete it, and repeat the command that began the run" in said.err


@pytest.mark.parametrize("name", ["old", "0.bak", "00", "+1", "1_0"])
def test_what_else_lies_beside_the_seeds_is_left_out(workdir, capsys, name, no_figure):
    (workdir / "linear" / name).mkdir()
    (workdir / "linear" / "notes.txt").write_text("hello")
    (workdir / "linear" / "7").write_text("a file")
    shutil.copytree(workdir / "linear/0", workdir / "linear/.ipynb_checkpoints")
    write_report(workdir)
    assert not capsys.readouterr().err
    shutil.copy(workdir / "linear/0/result.json", workdir / "linear" / name)
    assert row(workdir, "linear").accuracy.count == 3
    said = capsys.readouterr().err
    assert f"result.json is left out: the config has no seed {name} of linear" in said


def test_a_report_that_cannot_be_written_is_printed(workdir, capsys, no_figure):
    (workdir / "report.md").mkdir()
    with pytest.raises(UserError, match=r"cannot write the report to .*: Is a directory"):
        write_report(workdir)
    assert "88.00 ± 2.48" in capsys.readouterr().out


def test_a_run_without_a_timed_step_has_no_speed(workdir, no_figure):
    change(workdir / "t_1/0/result.json", images_per_second=0.0)
    change(workdir / "linear/0/result.json", images_per_second=0.0)
    assert row(workdir, "t_1").images_per_second is None
    assert row(workdir, "linear").images_per_second == 3001.5
    write_report(workdir)


def test_two_processes_may_write_the_report_at_the_same_time(workdir):
    sweep = load(workdir)
    threads = [
        threading.Thread(target=figure.draw, args=(sweep, rows(sweep), workdir / "report.png"))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert matplotlib.image.imread(workdir / "report.png").shape[1] > 1000
    assert not list(workdir.glob("*.unfinished"))
