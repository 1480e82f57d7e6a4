from experiments.paper import quantized_training


def test_costs_are_paired_with_the_network_that_was_trained_on_in_float32(tmp_path):
    costs = {"after_channel": 1, "in_channel": 0.5, "after_tensor": 20, "in_tensor": 2}
    runs = [
        {
            **{"arm": arm, "seed": seed, "float32": top1},
            **{way: top1 - cost for way, cost in costs.items()},
            **{"agreement_channel": 99.0, "agreement_tensor": 98.0},
        }
        for arm in ("linear", "relu6")
        for seed, top1 in enumerate((84.0, 82.0, 80.0))
    ]
    table = quantized_training.table_of(runs)
    lines = table.lines
    assert [line[:2] for line in lines] == [["linear", "3"], ["relu6", "3"]]
    assert len(lines[0]) == len(table.header)
    expected = ["-1.00 ± 0.00", "-0.50 ± 0.00", "-20.00 ± 0.00", "-2.00 ± 0.00", "99.0 / 98.0"]
    assert lines[0][3:] == expected
    quantized_training.draw(runs, tmp_path / "costs.png")
    assert (tmp_path / "costs.png").read_bytes()[1:4] == b"PNG"
