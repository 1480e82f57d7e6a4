import pytest

from mnv2.runtime.errors import UserError
from mnv2.sweeps import slurm
from mnv2.sweeps.plan import plan
from mnv2.sweeps.schedule import Duration, Forecast, longest_first, multiply_adds
from mnv2.sweeps.slurm import WORK, share_out


def test_a_run_has_the_multiply_adds_of_its_images(three_runs, tmp_path):
    three_runs.arms = (("a", {}), ("wide", {"model.width": 1.0}), ("long", {"batch_size": 64}))
    runs = plan(three_runs, tmp_path)
    work = multiply_adds(runs)
    a = next(one for one in runs if one.arm == "a")
    images = a.settings.batch_size * a.steps
    assert work["a/0"] % images == 0
    assert work["wide/0"] > work["a/0"]
    assert longest_first(runs, work)[-1].arm == min(work, key=lambda name: work[name])[:-2]


WORK_OF = {"a/0": 1.0, "a/1": 1.0, "a/2": 1.0, "b/0": 2.0, "c/0": 4.0}


def test_the_time_left_is_that_of_the_last_worker_to_end():
    forecast = Forecast(WORK_OF)
    assert forecast.left({"c/0": 3.0}, ["b/0"], 2) == 0  # nothing is known yet
    forecast.finished("c/0", Duration(training=40.0, rest=0.0, start=0.0))
    # In proportion to the work: b takes 20 s and each a 10 s.
    assert forecast.left({"b/0": 5.0}, ["a/0", "a/1"], 2) == pytest.approx(20.0)
    assert forecast.left({"b/0": 5.0}, ["a/0", "a/1"], 1) == pytest.approx(35.0)
    forecast.finished("b/0", Duration(30.0, 0.0, 0.0))
    # On the line through both: 20 s and 5 s for each multiply-add.
    assert forecast.left({}, ["a/0", "a/1"], 1) == pytest.approx(50.0)
    forecast.finished("a/0", Duration(12.0, 0.0, 0.0))
    assert forecast.left({}, ["a/1"], 1) == pytest.approx(12.0)  # as the other seed took


def test_only_the_first_run_of_an_arm_is_expected_to_compile():
    forecast = Forecast(WORK_OF)
    forecast.finished("c/0", Duration(training=40.0, rest=30.0, start=20.0))
    assert forecast.left({}, ["b/0"], 1) == pytest.approx(20 + 30)
    assert forecast.left({}, ["a/0", "a/1"], 1) == pytest.approx(10 + 30 + 10 + 10)
    assert forecast.left({"a/0": 1.0}, ["a/1"], 1) == pytest.approx(10 + 30 - 1 + 10 + 10)
    forecast.finished("a/0", Duration(9.0, 26.0, 20.0))
    assert forecast.left({}, ["a/1"], 1) == pytest.approx(9 + (10 + 6) / 2)
    forecast.finished("a/1", Duration(9.0, 4.0, 1.0))
    assert forecast.left({}, ["a/2"], 1) == pytest.approx(9 + 4)


def test_a_run_that_is_a_tenth_done_tells_how_long_it_takes():
    forecast = Forecast(WORK_OF)
    began = (10.0, 0.0)
    forecast.running("c/0", seconds=15.0, done=0.05, since=began, before=10.0)
    assert forecast.left({"c/0": 15.0}, [], 1) == 0
    forecast.running("c/0", seconds=20.0, done=0.25, since=began, before=10.0)
    assert forecast.left({"c/0": 20.0}, [], 1) == pytest.approx(30.0)


def test_a_resumed_run_tells_how_long_a_whole_one_takes():
    forecast = Forecast(WORK_OF)
    resumed = (12.0, 0.6)
    forecast.running("a/0", seconds=12.0, done=0.6, since=resumed, before=10.0)
    assert forecast.left({"a/0": 12.0}, ["a/1"], 1) == 0
    forecast.running("a/0", seconds=20.0, done=0.8, since=resumed, before=10.0)
    assert forecast.left({"a/0": 20.0}, [], 1) == pytest.approx(8.0)
    assert forecast.left({"a/0": 20.0}, ["a/1"], 1) == pytest.approx(8.0 + 40.0)


def test_short_runs_share_a_job_and_an_array_is_bounded(three_runs, tmp_path, monkeypatch):
    three_runs.seeds = 2
    runs = plan(three_runs, tmp_path)  # six
    work = {one.name: WORK * {"a": 0.4, "b": 0.7, "c": 3.0}[one.arm] for one in runs}

    def shared(runs_per_job):
        return [[one.name for one in job] for job in share_out(runs, work, runs_per_job)]

    assert shared(None) == [["c/0"], ["c/1"], ["b/0", "b/1"], ["a/0", "a/1"]]
    assert shared(1) == [[name] for name in ("c/0", "c/1", "b/0", "b/1", "a/0", "a/1")]
    assert shared(4) == [["c/0", "c/1", "b/0", "b/1"], ["a/0", "a/1"]]
    monkeypatch.setattr(slurm, "MOST_JOBS", 2)
    assert [len(job) for job in share_out(runs, work, None)] == [3, 3]
    with pytest.raises(UserError, match="--runs_per_job 2 would make more than 2 jobs of 6 runs"):
        shared(2)
