import matplotlib.image
import pytest

from experiments.paper import budget
from mnv2.runtime.errors import UserError
from mnv2.runtime.files import write_json

ACCURACIES = {  # of three seeds, by steps and arm
    100: {"linear": (0.6, 0.62, 0.61), "relu6": (0.5, 0.53, 0.5), "separable": (0.65, 0.6, 0.66)},
    500: {"linear": (0.8, 0.82, 0.81), "relu6": (0.78, 0.8, 0.78)},
}


@pytest.fixture
def folders(tmp_path):
    for steps, arms in ACCURACIES.items():
        config = budget.config_of(steps, seeds=3)
        description = {"config": config.to_dict(), "steps": dict.fromkeys(budget.ARMS, steps)}
        write_json(tmp_path / str(steps) / "sweep.json", description)
        for arm, accuracies in arms.items():
            for seed, accuracy in enumerate(accuracies):
                numbers = ("parameters", "multiply_adds", "images_per_second", "train_seconds")
                result = {"test": {"accuracy": accuracy}, **dict.fromkeys(numbers, 1)}
                path = tmp_path / str(steps) / arm / str(seed) / "result.json"
                write_json(path, {**result, "steps": steps})
    return [tmp_path / str(steps) for steps in (500, 100)]


def test_budgets_are_in_order_and_differences_paired_by_seed(folders, tmp_path):
    sweeps = budget.sweeps_of(folders)
    assert list(sweeps) == [100, 500]
    lines = budget.lines_of(sweeps)
    assert lines[0][:3] == (100, "61.00", "-10.00 ± 2.48")
    assert lines[0][-1] == "separable > linear > relu6"
    assert lines[1][:3] == (500, "81.00", "-2.33 ± 1.43")
    assert lines[1][3] == ""  # not trained
    budget.draw(sweeps, tmp_path / "budget.png")
    assert matplotlib.image.imread(tmp_path / "budget.png").std() > 0


def test_a_budget_that_there_is_already_is_refused_before_anything_is_trained(
    folders, tmp_path, monkeypatch
):
    arguments = ["--out", str(tmp_path / "never"), "--budgets", "500", "--also", *map(str, folders)]
    monkeypatch.setattr("sys.argv", ["budget", *arguments])
    with pytest.raises(UserError, match="--also has 500 steps already: leave that out"):
        budget.main()
    assert not (tmp_path / "never").exists()
    with pytest.raises(UserError, match="both have 500 steps"):
        budget.sweeps_of([*folders, folders[0]])
