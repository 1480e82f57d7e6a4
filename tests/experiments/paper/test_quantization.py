import pytest

from experiments.paper import quantization
from experiments.paper.quantization import FLOAT


def test_costs_are_paired_by_seed_and_have_intervals_from_three_seeds_on(tmp_path):
    runs = [
        {"arm": arm, "seed": seed}
        | {form: top1 - (form != FLOAT) * cost for form in quantization.FORMATS}
        for arm, seeds, cost in (("linear", 3, 2.0), ("relu6", 2, 0.5))
        for seed, top1 in enumerate((84.0, 80.0, 82.0)[:seeds])
    ]
    found = quantization.costs(runs)
    assert found["linear"][FLOAT].mean == pytest.approx(82.0)
    one = found["linear"]["LiteRT, tensor"]
    assert (one.mean, one.half_width) == (pytest.approx(-2.0), pytest.approx(0.0, abs=1e-9))
    assert found["relu6"]["ONNX, channel"].half_width is None
    quantization.draw(runs, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes()[1:4] == b"PNG"
