import dataclasses
from typing import NamedTuple

import pytest

from experiments.common.writers import write_csv


class Named(NamedTuple):
    name: str
    value: float


@dataclasses.dataclass
class Data:
    name: str
    value: float


@pytest.mark.parametrize("row", [Named("a", 1 / 3), Data("a", 1 / 3)])
def test_csv_has_a_header_and_six_digits(tmp_path, row):
    write_csv([row], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "name,value\na,0.333333\n"


def test_derived_columns_follow_the_fields(tmp_path):
    rows = [Named("a", 0.5), Named("b", 1.0)]
    derived = {"large": [False, True], "half": [0.25, 0.5]}
    write_csv(rows, tmp_path / "rows.csv", derived)
    text = "name,value,large,half\na,0.5,False,0.25\nb,1,True,0.5\n"
    assert (tmp_path / "rows.csv").read_text() == text


def test_a_derived_column_needs_one_value_per_row(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        write_csv([Named("a", 0.5), Named("b", 1.0)], tmp_path / "rows.csv", {"large": [True]})


def test_without_digits_a_float_keeps_its_value(tmp_path):
    write_csv([Named("a", 1 / 3), Named("b", 1.0)], tmp_path / "rows.csv", digits=None)
    assert (tmp_path / "rows.csv").read_text() == f"name,value\na,{1 / 3}\nb,1.0\n"


def test_lines_end_as_asked(tmp_path):
    write_csv([Named("a", 0.5)], tmp_path / "rows.csv", line_end="\r\n")
    assert (tmp_path / "rows.csv").read_bytes() == b"name,value\r\na,0.5\r\n"
