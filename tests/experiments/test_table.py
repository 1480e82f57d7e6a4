from typing import NamedTuple

from experiments.common.experiment import Table, write_csv


class Row(NamedTuple):
    name: str
    value: float


def test_a_table_is_printed_with_aligned_columns_and_written_as_markdown_and_csv(tmp_path, capsys):
    rows = [Row("a", 1 / 3), Row("long", 12.0)]
    lines = [(row.name, f"{row.value:.1f}") for row in rows]
    Table("rows", ("name", "value"), lines).write(tmp_path / "new", rows)
    assert capsys.readouterr().out == "\nname  value\na       0.3\nlong   12.0\n"
    text = "| name | value |\n| --- | --: |\n| a | 0.3 |\n| long | 12.0 |\n"
    assert (tmp_path / "new/rows.md").read_text() == text
    assert (tmp_path / "new/rows.csv").read_text() == f"name,value\na,{1 / 3}\nlong,12.0\n"


def test_records_may_have_more_columns_than_a_named_tuple(tmp_path):
    write_csv([{**Row("a", 0.5)._asdict(), "large": False}], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "name,value,large\na,0.5,False\n"
