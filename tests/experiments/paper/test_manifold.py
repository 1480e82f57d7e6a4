import sys

import numpy as np
import pytest

from experiments.paper import manifold


def test_mean_collapse_over_many_draws_agrees_with_theorem_1():
    curve = manifold.spiral(200)
    for dimensions in (2, 3, 5):
        row = manifold.measure(curve, dimensions, draws=2000)
        assert row.collapsed == pytest.approx(row.theorem, abs=0.01)  # four standard errors


def test_theorem_1_in_closed_form():
    # Fewer than two of n fair coins show heads: (n + 1) / 2^n.
    for dimensions in manifold.DIMENSIONS:
        expected = (dimensions + 1) / 2**dimensions
        assert manifold.collapsed_by_theorem(dimensions) == pytest.approx(expected, rel=1e-6)


def test_relu_loses_nothing_without_negative_values():
    curve = np.abs(manifold.spiral(50))
    matrix = np.abs(np.random.default_rng(0).normal(size=(7, 2)))
    back = np.linalg.pinv(matrix) @ np.maximum(matrix @ curve, 0)
    assert manifold._error(curve, back) < 1e-12


def test_the_table_the_csv_and_the_picture_are_written(monkeypatch, tmp_path, capsys):
    arguments = ["manifold", "--draws", "20", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    manifold.main()
    assert "theorem 1" in capsys.readouterr().out
    assert len((tmp_path / "manifold.csv").read_text().splitlines()) == 6
    assert (tmp_path / "manifold.png").stat().st_size > 20_000
