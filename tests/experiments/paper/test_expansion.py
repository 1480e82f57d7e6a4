import pytest

from configs import v2_ablation
from experiments.paper import expansion
from mnv2.analysis import complexity
from mnv2.models import create_model
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.sweeps.workdir import Sweep


def multiply_adds(arm):
    config = resolve(with_arms(v2_ablation.get_config()), "linear")
    config.model.update({name.split(".")[1]: value for name, value in arm.items()})
    fields = config.model.to_dict()
    model = create_model(fields.pop("name"), num_classes=10, **fields)
    return complexity.multiply_adds(model, (28, 28, 1))


def test_arms_of_equal_cost_agree_within_a_few_per_cent_and_panels_show_them():
    arms, panels = expansion.arms()
    assert len(arms) == 10
    assert {arm for _, _, shown in panels for arm in shown} == set(arms)
    for name in expansion.WIDTHS:
        wanted = multiply_adds(arms[f"{name}_6"])
        for t in ("2", "10"):
            equal = arms[f"{name}_{t}_equal_cost"]
            assert multiply_adds(equal) / wanted == pytest.approx(1, abs=0.022)


def test_differences_are_relative_to_the_same_network_with_t_6(tmp_path):
    numbers = ("parameters", "multiply_adds", "images_per_second", "train_seconds")
    fixed = dict.fromkeys(numbers, 2_000_000)
    arms, _ = expansion.arms()
    config = {"arms": list(arms.items()), "seed": 0, "seeds": 3, "baseline": "narrow_6"}
    results = {
        arm: {
            seed: {**fixed, "test": {"accuracy": 0.8 + 0.01 * seed + 0.05 * (arm == "wide_10")}}
            for seed in range(3)
        }
        for arm in arms
    }
    expansion.write_table(Sweep(tmp_path, config, {}, results))
    lines = (tmp_path / "expansion.md").read_text().splitlines()
    assert len(lines) == 12
    assert "| wide, equal width | 10 | 0.75 | 2.00 M | 3 | 86.00 ± 2.48 | +5.00 ± 0.00 |" in lines
    assert "| wide, equal width | 6 | 0.75 | 2.00 M | 3 | 81.00 ± 2.48 |  |" in lines
