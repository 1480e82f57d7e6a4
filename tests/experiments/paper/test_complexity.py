import csv
import sys

import pytest

from experiments.paper import complexity


@pytest.fixture(scope="module")
def counted():
    return complexity.rows()


def test_exactly_the_known_rows_differ(counted):
    differing = [
        (row.table, row.network, row.width, row.resolution) for row in counted if not row.agrees()
    ]
    assert differing == [
        ("V2 table 4", "mobilenet_v2", 1.4, 224),
        ("V2 table 4", "mobilenet_v1", 1.0, 224),
        *(("slim V1", "mobilenet_v1", 0.75, size) for size in (224, 192, 160, 128)),
        ("slim V1", "mobilenet_v1", 0.25, 192),
    ]


def test_a_wrong_count_does_not_agree(counted):
    row = next(row for row in counted if row.table == "slim V2")
    assert row.agrees()
    assert not row._replace(multiply_adds=row.multiply_adds + 2).agrees()
    assert not row._replace(parameters=7.0, weights=7.0).agrees()


def test_the_table_and_the_figure_are_written(counted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(complexity, "rows", lambda: counted)
    monkeypatch.setattr(sys, "argv", ["complexity", "--out", str(tmp_path)])
    complexity.main()
    printed = capsys.readouterr().out
    assert "42 of 49 rows agree" in printed
    assert max(map(len, printed.splitlines())) <= 110
    with (tmp_path / "complexity.csv").open() as file:
        assert sum(row["agrees"] == "True" for row in csv.DictReader(file)) == 42
    assert (tmp_path / "complexity.png").stat().st_size > 10_000
