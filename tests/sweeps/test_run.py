import copy
import json
import subprocess

import ml_collections
import pytest

from configs import v2_ablation
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import sole_writer, write_json
from mnv2.runtime.layout import RESULT
from mnv2.sweeps import plan as plans
from mnv2.sweeps import run
from mnv2.sweeps import workdir as workdirs
from mnv2.sweeps.plan import plan, with_arms
from tests.deployment.networks import SHORT


@pytest.fixture
def config():
    config = v2_ablation.get_config("quick")
    config.model.repeats = SHORT  # the networks are traced for their cost
    return with_arms(config)


@pytest.fixture
def trained(monkeypatch, no_figure):
    """Replaces training by writing a made-up result; returns the runs that were trained."""
    runs = []

    def train(settings, workdir, **_):
        runs.append(f"{workdir.parent.name}/{workdir.name}")
        result = {
            "test": {
                "accuracy": 0.9 + 0.001 * settings.seed - 0.02 * (settings.model["width"] < 0.3)
            },
            "parameters": 1000,
            "multiply_adds": 5000,
            "images_per_second": 100.0,
            "train_seconds": 30.0,
            "steps": int(settings.duration.removesuffix(" steps")),
            "waiting_for_input": 0.2,
            "first_step_seconds": 9.0,
        }
        write_json(workdir / RESULT, result)
        return result

    monkeypatch.setattr(run, "train", train)
    return runs


ALL = ["linear/0", "relu6/0", "t_1/0", "width_0.25/0", "linear/1", "relu6/1"]


def test_every_arm_is_run_with_the_first_seed_before_any_with_the_second(config, tmp_path, trained):
    run.train_here(config, tmp_path)
    assert trained == ALL


def test_what_is_finished_is_not_run_again(config, tmp_path, trained, capsys):
    run.train_here(config, tmp_path, ["relu6"])
    assert trained == ["relu6/0", "relu6/1"]
    run.train_here(config, tmp_path)
    assert trained == ["relu6/0", "relu6/1", "linear/0", "t_1/0", "width_0.25/0", "linear/1"]
    run.train_here(config, tmp_path)
    assert len(trained) == 6
    assert f"6 of 6 runs in {tmp_path} are finished already" in capsys.readouterr().out


def test_each_arm_changes_what_it_says_and_nothing_else(config, tmp_path):
    runs = {(one.arm, one.seed): one.config for one in plan(config, tmp_path)}
    assert runs["relu6", 1]["model"]["bottleneck"] == "relu6"
    assert runs["width_0.25", 0]["model"]["width"] == 0.25
    changed = copy.deepcopy(runs["relu6", 0])
    changed["model"]["bottleneck"] = "linear"
    assert changed == runs["linear", 0]
    assert [runs["linear", seed]["seed"] for seed in (0, 1)] == [0, 1]


def test_tensorboard_shows_the_arm_and_the_fields_that_some_arm_changes(config, tmp_path):
    shown = {one.name: one.hyperparameters() for one in plan(config, tmp_path)}
    of_relu6 = {"model.bottleneck": "relu6", "model.expansion": 6.0, "model.width": 0.35}
    assert shown["relu6/1"] == {"arm": "relu6", "seed": 1, **of_relu6}
    config.arms = (("linear", {}), ("erased", {"data.train": "erase"}))
    erased = plan(config, tmp_path)[1].hyperparameters()
    assert (erased["data.train"], erased["data.train.erase.probability"]) == ("erase", 0.25)


def test_more_seeds_can_be_added_to_finished_ones(config, tmp_path, trained):
    run.train_here(config, tmp_path)
    config.arms = tuple(
        (arm, {**changes, "seeds": 3} if arm == "relu6" else changes)
        for arm, changes in config.arms
    )
    run.train_here(config, tmp_path)
    assert trained == [*ALL, "relu6/2"]


def test_a_finished_sweep_is_trained_longer_all_arms_alike(config, tmp_path, trained, capsys):
    run.train_here(config, tmp_path)
    config.duration = "40 steps"
    run.train_here(config, tmp_path, ["relu6/1"])
    assert trained == [*ALL, "relu6/1"]
    printed = capsys.readouterr().out
    assert "relu6/1 was finished after 30 steps, and is trained to step 40" in printed
    assert "not finished" not in printed  # what was asked for is
    others = "Not finished: linear/0, linear/1, relu6/0, t_1/0, width_0.25/0."
    assert others in (tmp_path / "report.md").read_text()
    assert workdirs.load(tmp_path).steps == dict.fromkeys(dict(config.arms), 40)
    run.train_here(config, tmp_path)
    assert sorted(trained) == sorted(2 * ALL)
    run.train_here(config, tmp_path)
    assert len(trained) == 12
    assert "Not finished" not in (tmp_path / "report.md").read_text()


def test_fields_that_change_no_result_may_change(config, tmp_path, trained):
    run.train_here(config, tmp_path, ["linear"])
    config.log_every, config.checkpoint_every, config.on_nan = 7, "3 steps", "skip"
    config.eval_batch_size, config.eval_every = 100, "5 steps"
    run.train_here(config, tmp_path, ["relu6"])
    recorded = json.loads((tmp_path / "relu6/0/config.json").read_text())
    assert (recorded["log_every"], recorded["on_nan"]) == (7, "skip")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("duration", "20 steps", "duration = '30 steps' instead of '20"),
        ("seed", 5, "seed = 0 instead of 5"),
        ("optimization.learning_rate", 0.1, "optimization.learning_rate = 0.05 instead"),
    ],
)
def test_a_workdir_of_another_config_is_refused_and_left_as_it_was(
    config, tmp_path, trained, field, value, message
):
    run.train_here(config, tmp_path, ["linear"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=f"holds runs with {message}"):
        run.train_here(config, tmp_path, ["linear"])
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


def test_fields_of_other_versions_are_those_of_the_runs_with_their_defaults(
    config, tmp_path, trained
):
    run.train_here(config, tmp_path, ["linear"])
    for path in (tmp_path / "sweep.json", *tmp_path.glob("linear/*/config.json")):
        recorded = json.loads(path.read_text())
        older = recorded.get("config", recorded)
        del older["ema_decay"], older["data"]["repeats"], older["optimization"]["clip"]
        older["recalibrate"], older["data"]["progressive"] = 0, []  # which are gone
        path.write_text(json.dumps(recorded))
    run.train_here(config, tmp_path)
    assert sorted(trained) == sorted(ALL)
    config.ema_decay = 0.5
    with pytest.raises(UserError, match=r"holds a? ?runs? with ema_decay = 0.0 instead of 0.5"):
        run.train_here(config, tmp_path)
    config.ema_decay = 0.0
    recorded = json.loads((tmp_path / "sweep.json").read_text())
    recorded["config"]["recalibrate"] = 20
    (tmp_path / "sweep.json").write_text(json.dumps(recorded))
    with pytest.raises(UserError, match=r"holds runs with recalibrate = 20 instead of None"):
        run.train_here(config, tmp_path)


@pytest.mark.parametrize("only", [[], ["new"]])
def test_an_arm_that_means_something_else_now_is_refused(config, tmp_path, trained, only):
    run.train_here(config, tmp_path)
    config.arms = (("linear", {}), ("relu6", {"model.width": 0.5}), ("new", {}))
    with pytest.raises(UserError, match=r"relu6/0 holds a run with model.bottleneck = 'relu6'"):
        run.train_here(config, tmp_path, only)


def test_the_runs_of_other_arms_are_not_mixed_in(config, tmp_path, trained):
    run.train_here(config, tmp_path)
    config.arms, config.baseline = (("wide", {"model.width": 0.5}),), "wide"
    with pytest.raises(UserError, match="holds the runs of other arms"):
        run.train_here(config, tmp_path)


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ((("a", {"model.wdith": 0.5}),), "arm a changes the unknown field 'model.wdith'"),
        ((("a", {"model.width": "wide"}),), "arm a: "),
        ((("a", {"model.width": 0.0}),), "width must be greater than 0"),
        ((("a", {"seeds": 0}),), "seeds of arm a must be a whole number, 1 or more, got 0"),
    ],
)
def test_an_arm_that_cannot_start_is_refused_before_any_other_starts(
    config, tmp_path, trained, arms, message
):
    config.arms = (*config.arms, *arms)
    with pytest.raises(UserError, match=message):
        run.train_here(config, tmp_path / "runs")
    assert not trained
    assert not (tmp_path / "runs").exists()


def test_what_was_run_is_recorded(config, tmp_path, trained):
    run.train_here(config, tmp_path)
    recorded = json.loads((tmp_path / "sweep.json").read_text())
    assert recorded["config"]["model"]["name"] == "mobilenet_v2"
    one = json.loads((tmp_path / "relu6" / "1" / "config.json").read_text())
    assert (one["model"]["bottleneck"], one["seed"]) == ("relu6", 1)
    environment = json.loads((tmp_path / "relu6" / "1" / "environment.json").read_text())
    assert environment["packages"]["jax"].count(".") >= 2
    assert len(environment["devices"]) == 8


def test_a_finished_sweep_stays_as_it_is_under_other_devices(
    config, tmp_path, trained, monkeypatch
):
    run.train_here(config, tmp_path, ["linear"])
    kept = [tmp_path / "sweep.json", tmp_path / "linear/0/environment.json"]
    before = [path.read_bytes() for path in kept]
    stamps = [path.stat().st_mtime_ns for path in kept]
    report = (tmp_path / "report.md").read_bytes()
    monkeypatch.setattr(plans, "environment", lambda: {"devices": ["TPU v9"], "packages": {}})
    run.train_here(config, tmp_path, ["linear"])
    assert [path.read_bytes() for path in kept] == before
    assert [path.stat().st_mtime_ns for path in kept] == stamps
    assert (tmp_path / "report.md").read_bytes() == report
    run.train_here(config, tmp_path, ["relu6"])
    assert "TPU v9" in (tmp_path / "relu6/0/environment.json").read_text()
    steps = json.loads((tmp_path / "sweep.json").read_text())["steps"]
    assert steps == {"linear": 30, "relu6": 30}


def test_a_run_that_is_resumed_elsewhere_keeps_both_environments(
    config, tmp_path, trained, monkeypatch
):
    folder = tmp_path / "linear" / "0"
    (folder / "checkpoints" / "10").mkdir(parents=True)
    begun = {"devices": ["cpu"], "machine": "A", "packages": {"jax": "1"}, "commit": "c"}
    write_json(folder / "environment.json", begun)
    run.train_here(config, tmp_path, ["linear/0"])
    recorded = json.loads((folder / "environment.json").read_text())
    assert recorded["earlier"] == [begun]
    assert len(recorded["devices"]) == 8
    (folder / "result.json").unlink()
    run.train_here(config, tmp_path, ["linear/0"])  # in the same environment again
    assert json.loads((folder / "environment.json").read_text()) == recorded


def test_a_run_that_fails_does_not_keep_the_others_from_being_done(
    config, tmp_path, trained, monkeypatch
):
    train = run.train

    def failing(settings, workdir, **_):
        if settings.model["bottleneck"] == "relu6":
            raise OSError(28, "No space left on device")
        if settings.model["expansion"] == 1:
            raise UserError("broken picture")
        return train(settings, workdir)

    monkeypatch.setattr(run, "train", failing)
    with pytest.raises(UserError) as error:
        run.train_here(config, tmp_path, ["relu6/0", "t_1/0", "width_0.25/0"])
    assert str(error.value) == (
        "2 of the runs failed: relu6/0, t_1/0; why is said above, and with any traceback in "
        f"{tmp_path}/relu6/0/failure.txt"
    )
    failure = (tmp_path / "relu6/0/failure.txt").read_text()
    assert failure.startswith("Traceback")
    assert failure.endswith("OSError: [Errno 28] No space left on device\n")
    assert (tmp_path / "t_1/0/failure.txt").read_text() == "broken picture\n"
    assert trained == ["width_0.25/0"]
    assert (tmp_path / "report.md").exists()


def test_a_run_that_another_process_is_doing_is_left_to_it(
    config, tmp_path, trained, capsys, monkeypatch
):
    monkeypatch.setattr(run, "LATER_SECONDS", 0.2)
    with sole_writer(tmp_path / "linear/0"):
        run.train_here(config, tmp_path, ["linear/0"])
    assert "linear/0" in (printed := capsys.readouterr().out)
    assert "is being done by process" in printed
    assert not trained


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": None}, "the config lacks arms: "),
        ({"baseline": None}, "the config lacks baseline: the name of an arm"),
        ({"panels": None}, "the config lacks panels: "),
        ({"seeds": None}, "the config lacks seeds"),
        ({"model": None}, "the config lacks model"),
        ({"arms": ()}, "arms must be pairs"),
        ({"arms": ("linear", "relu6")}, "arms must be pairs"),
        ({"arms": (("linear", ()),)}, "arms must be pairs"),
        ({"arms": (("linear", {}), ("linear", {}))}, "different names, got 'linear' twice"),
        ({"arms": (("a/b", {}),)}, "'a/b' cannot be the name of an arm"),
        ({"arms": (("report", {}),)}, "'report' cannot be the name of an arm"),
        ({"arms": (("report.png", {}),)}, "'report.png' cannot be the name of an arm"),
        ({"arms": (("a|b", {}),)}, "cannot be the name of an arm"),
        ({"arms": ((" a", {}),)}, "cannot be the name of an arm"),
        ({"arms": (("é" * 80, {}),)}, "that of a folder, of at most 100 bytes"),
        ({"arms": (("linear", {"seed": 7}),)}, "arm linear changes seed, which must be the same"),
        ({"seed": 2**32 - 1, "seeds": 2}, "the last seed of arm linear must be a whole number"),
        ({"baseline": "linaer"}, "unknown baseline 'linaer': did you mean 'linear'"),
        ({"panels": (("a", "model.width"),)}, "panels must be triples"),
        ({"panels": (("a", "model.wdith", ()),)}, "shows 'model.wdith', which is no field"),
        ({"panels": (("a", "arm", (1,)),)}, "panels must be triples"),
        ({"panels": (("a", "arm", "linear"),)}, "panels must be triples"),
        ({"lable_smoothing": 0.1}, "unknown field lable_smoothing: did you mean label_smoothing?"),
    ],
)
def test_a_config_that_cannot_be_reported_is_refused_before_anything_starts(
    config, tmp_path, trained, change, message
):
    values = {name: value for name, value in config.items() if name not in change}
    values.update((name, value) for name, value in change.items() if value is not None)
    with pytest.raises(UserError) as error:
        run.train_here(ml_collections.ConfigDict(values), tmp_path / "runs")
    assert message in str(error.value)
    assert not trained
    assert not (tmp_path / "runs").exists()


def test_a_number_that_is_not_finite_is_refused_by_its_name(config, tmp_path, trained):
    with config.unlocked():
        config.tuning_seeds = float("inf")
    with pytest.raises(UserError, match=r"config\.tuning_seeds is inf"):
        run.train_here(config, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "advice"),
    [
        ("sweep.json", "", "delete it, and repeat"),
        ("sweep.json", "[]", "delete it, and repeat"),
        ("sweep.json", '{"config": {"arms', "delete it, and repeat"),
        ("sweep.json", '{"config": {}}', "delete it, and repeat"),
        ("sweep.json", "{}", "delete it, and repeat"),
        ("linear/1/config.json", '{"model": ', "delete it to resume"),
    ],
)
def test_a_damaged_file_is_named_and_what_to_do_works(
    config, tmp_path, trained, name, content, advice
):
    run.train_here(config, tmp_path, ["linear"], reports=False)
    damaged = tmp_path / name
    damaged.write_text(content)
    with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): {advice}"):
        run.train_here(config, tmp_path, ["linear"])
    damaged.unlink()
    run.train_here(config, tmp_path, ["linear"], reports=False)
    assert trained == ["linear/0", "linear/1"]


def test_a_run_whose_folder_cannot_be_written_does_not_stop_the_others(
    config, tmp_path, trained, capsys
):
    (tmp_path / "t_1").write_text("a file")
    with pytest.raises(UserError, match=r"1 of the runs failed: t_1/0; why is said above"):
        run.train_here(config, tmp_path, reports=False)
    assert "t_1/0  failed: cannot write to " in capsys.readouterr().out
    assert trained == [name for name in ALL if name != "t_1/0"]


def test_no_commit_is_recorded_if_this_code_lies_in_the_repository_of_another_project(
    monkeypatch, tmp_path
):
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "mnv2" / "sweeps").mkdir(parents=True)
    (tmp_path / "mnv2" / "__init__.py").write_text("")
    monkeypatch.setattr(workdirs, "__file__", str(tmp_path / "mnv2/sweeps/workdir.py"))
    assert workdirs.commit() is None
