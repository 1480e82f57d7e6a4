import json

import pytest

from mnv2.runtime.errors import NotFinite, RunsFailed, UserError
from mnv2.runtime.files import write_json, write_text
from mnv2.runtime.layout import CONFIG, RESULT
from mnv2.status import statuses
from mnv2.sweeps.run import train_here
from mnv2.sweeps.tuning import choose, run_tuned, tuning_config
from mnv2.sweeps.workdir import load, record_failure

RATE = "optimization.learning_rate"


@pytest.fixture
def config(tiny_config):
    """Two arms, of which one has a fixed number of seeds, and three values."""
    tiny_config.arms = (("a", {}), ("b", {"model.bottleneck": "relu6", "seeds": 2}))
    tiny_config.baseline, tiny_config.seeds = "a", 1
    tiny_config.panels = (("bottleneck", "model.bottleneck", ("a", "b")),)
    with tiny_config.unlocked():
        tiny_config.tuned, tiny_config.tuning_seeds = (RATE, (0.2, 0.05, 0.1)), 1
    return tiny_config


def pretend(config, workdir, accuracies):
    """Stands for the execution of runs: writes their results; returns a function that executes."""
    executed = []

    def execute(config, workdir, *only, reports):
        arms = dict(config.arms)
        for arm, changes in arms.items():
            for seed in range(config.seed, config.seed + changes.get("seeds", config.seeds)):
                folder = workdir / arm / str(seed)
                if (only and f"{arm}/{seed}" not in only) or (folder / RESULT).exists():
                    continue
                executed.append(f"{workdir.name}/{arm}/{seed}")
                accuracy = accuracies.get(arm, 0.5)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / CONFIG, {"on_nan": config.on_nan})
                if isinstance(accuracy, UserError):
                    record_failure(folder, accuracy)
                    continue
                numbers = ("parameters", "multiply_adds", "images_per_second", "train_seconds")
                result = {config.final_split: {"accuracy": accuracy}, **dict.fromkeys(numbers, 1)}
                write_text(folder / RESULT, json.dumps(result))
        description = {"config": config.to_dict(), "steps": {}}
        write_text(workdir / "sweep.json", json.dumps(description))
        if any(isinstance(value, UserError) for value in accuracies.values()):
            raise RunsFailed("some runs failed")

    return execute, executed


def test_each_arm_is_compared_at_the_value_of_the_baseline_and_at_its_own(config, tmp_path):
    found = {"a@0.05": 0.6, "a@0.1": 0.8, "a@0.2": 0.7, "b@0.05": 0.5, "b@0.1": 0.6, "b@0.2": 0.7}
    execute, executed = pretend(config, tmp_path, found)
    run_tuned(config, tmp_path, execute=execute)
    assert executed[:6] == [f"tuning/{arm}/1000" for arm in found]
    assert [name.partition("/")[2] for name in executed[6:]] == [
        *("a/0", "b/0", "b/1"),
        *("b@0.2/0", "b@0.2/1"),
    ]
    arms = load(tmp_path).arms
    assert arms["a"] == {RATE: 0.1}
    assert arms["b"] == {RATE: 0.1, "model.bottleneck": "relu6", "seeds": 2}
    assert arms["b@0.2"] == {**arms["b"], RATE: 0.2}
    text = (tmp_path / "tuning.md").read_text()
    assert "seed which the comparison does not use: a 0.1, b 0.2." in text
    assert "The value of b is the largest that was tried: a better one may lie above it." in text
    run_tuned(config, tmp_path, execute=execute)  # nothing is left
    assert len(executed) == 11


def test_a_value_with_which_an_arm_does_not_stay_finite_is_not_chosen(config, tmp_path):
    diverged = NotFinite("the state after step 3 is not finite")
    execute, executed = pretend(config, tmp_path, {"a@0.2": diverged, "b@0.2": 0.9, "a@0.05": 0.7})
    tuned = tuning_config(config)
    with pytest.raises(UserError, match="some runs failed"):
        execute(tuned, tmp_path / "tuning", reports=False)
    choices = choose(load(tmp_path / "tuning"))
    assert choices["a"].found[0.2] is None
    assert (choices["a"].value, choices["a"].end) == (0.05, "smallest")
    assert (choices["b"].value, choices["b"].end) == (0.2, "largest")
    executed.clear()
    with pytest.raises(UserError, match="some runs failed"):  # of the pretended comparison
        run_tuned(config, tmp_path, execute=execute)
    assert not [name for name in executed if name.startswith("tuning/")]
    executed.clear()
    config.on_nan = "skip"  # such steps are left out now
    with pytest.raises(RunsFailed):
        run_tuned(config, tmp_path, execute=execute)
    assert [name for name in executed if name.startswith("tuning/")] == ["tuning/a@0.2/1000"]


def test_an_arm_without_a_finite_value_is_an_error_and_not_trained_again(config, tmp_path):
    diverged = dict.fromkeys(("a@0.05", "a@0.1", "a@0.2", "b@0.05", "b@0.1", "b@0.2"))
    execute, executed = pretend(config, tmp_path, dict.fromkeys(diverged, NotFinite("nan")))
    for _ in range(2):
        with pytest.raises(UserError, match="a stayed finite with no value"):
            run_tuned(config, tmp_path, execute=execute)
    assert len(executed) == 6


def test_fewer_seeds_of_tuning_are_enough_if_there_are_more(config, tmp_path):
    config.tuning_seeds = 3
    execute, _ = pretend(config, tmp_path, {"a@0.1": 0.9})
    execute(tuning_config(config), tmp_path / "tuning", reports=False)
    config.tuning_seeds = 2
    execute(tuning_config(config), tmp_path / "tuning", reports=False)
    choice = choose(load(tmp_path / "tuning"))["a"]
    assert (choice.value, choice.found[0.1].count) == (0.1, 2)


def test_another_config_in_the_same_workdir_is_not_compared(config, tmp_path):
    execute, executed = pretend(config, tmp_path, {})
    run_tuned(config, tmp_path, execute=execute)
    executed.clear()

    def refuse(config, workdir, *only, reports):
        raise UserError("holds runs with batch_size = 16 instead of 32")

    with pytest.raises(UserError, match="holds runs with batch_size"):
        run_tuned(config, tmp_path, execute=refuse)


def test_tuning_has_seeds_that_the_comparison_has_not(config):
    config.seeds = 1500
    assert tuning_config(config).seed == 1500


def test_as_long_as_runs_are_missing_nothing_is_compared(config, tmp_path, capsys):
    def submit(config, workdir, *only, reports):
        assert workdir == tmp_path / "tuning"  # to other processes

    run_tuned(config, tmp_path, execute=submit)
    assert "note: tuning is not finished: a@0.05/1000" in capsys.readouterr().err
    execute, _ = pretend(config, tmp_path, {"a@0.1": UserError("the disk is full")})
    with pytest.raises(UserError, match="some runs failed"):
        run_tuned(config, tmp_path, execute=execute)
    with pytest.raises(UserError, match=r"the arms of .* are still tuned: see .*tuning"):
        statuses(tmp_path)


@pytest.mark.parametrize(
    ("tuned", "message"),
    [
        ((RATE, (0.1,)), "tuned must be a field and two numbers or more"),
        ((RATE, (0.1, 0.1)), "tuned must be a field and two numbers or more"),
        (RATE, "tuned must be a field and two numbers or more"),
        (("optimization.rate", (0.1, 0.2)), "names 'optimization.rate', which is no field"),
        (("model.bottleneck", ("linear", "relu6")), "two numbers or more"),
        (("seed", (0, 5)), "names 'seed', which is no field of the config that may differ"),
        (("data.validation", (100, 200)), "no field of the config that may differ"),
    ],
)
def test_what_cannot_be_tuned_is_refused(config, tuned, message):
    with config.ignore_type():
        config.tuned = tuned
    with pytest.raises(UserError, match=message):
        tuning_config(config)


def test_whole_numbers_are_tuned_as_whole_numbers(config):
    config.tuned = ("batch_size", (1_000_001, 16, 1_000_002))
    arms = dict(tuning_config(config).arms)
    assert [arms[name]["batch_size"] for name in ("a@16", "a@1000001", "a@1000002")] == [
        *(16, 1_000_001, 1_000_002)
    ]
    assert all(type(changes["batch_size"]) is int for changes in arms.values())


def test_the_name_of_an_arm_has_no_sign_that_tuning_uses(config):
    config.arms = (("a", {}), ("a@0.2", {}))
    with pytest.raises(UserError, match=r"arm a@0\.2 needs a name without @"):
        tuning_config(config)


def test_an_arm_that_changes_the_tuned_field_is_refused(config):
    config.arms = (("a", {}), ("b", {RATE: 0.1}))
    with pytest.raises(UserError, match=f"arm b changes {RATE}, which is tuned"):
        tuning_config(config)


def test_tuning_never_sees_the_test_split(config, fashion_mnist, tmp_path):
    train_here(tuning_config(config), tmp_path, ["a@0.05/1000"])
    result = json.loads((tmp_path / "a@0.05/1000/result.json").read_text())
    assert result["validation"]["examples"] == 100
    assert "test" not in result
    lines = (tmp_path / "a@0.05/1000/metrics.jsonl").read_text()
    assert "test/" not in lines
    assert lines.count("validation/loss") == 1
    assert "| arm | params | MAdds | validation top-1 % |" in (tmp_path / "report.md").read_text()
