import sys

import pytest

from experiments.paper import manifold


def test_mean_collapse_over_many_draws_agrees_with_theorem_1():
    curve = manifold.spiral(200)
    for dimensions in (2, 3, 5):
        row = manifold.measure(curve, dimensions, draws=2000)
        assert row.collapsed == pytest.approx(row.theorem, abs=0.01)  # four standard errors


def test_the_table_the_csv_and_the_picture_are_written(monkeypatch, tmp_path, capsys):
    arguments = ["manifold", "--draws", "20", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    manifold.main()
    assert "theorem 1" in capsys.readouterr().out
    assert len((tmp_path / "manifold.csv").read_text().splitlines()) == 6
    assert (tmp_path / "manifold.png").stat().st_size > 20_000
