from typing import NamedTuple

from experiments import tables

README = """# Results
<!-- found: measured by a command -->
| old |
<!-- end of found -->
Text in between.
<!-- other: measured by a command -->
| kept |
<!-- end of other -->
![a figure](../docs/found.png) ![another](../docs/other.png)
"""


def test_tables_stand_between_their_marks_and_nothing_else_changes(tmp_path):
    tables.write_markdown(tmp_path / "runs" / "some", "found", ("a", "b"), [("x", 1), ("y", 2.5)])
    text, missing = tables.fill(README, tmp_path / "runs")
    assert missing == ["other"]
    assert text == README.replace("| old |", "| a | b |\n| --- | --: |\n| x | 1 |\n| y | 2.5 |")
    assert tables.fill(text, tmp_path / "runs") == (text, missing)


def test_figures_that_were_drawn_are_copied(tmp_path):
    (tmp_path / "runs/found").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "runs/found/report.png").write_bytes(b"new")
    assert tables.copy_figures(README, tmp_path / "runs", tmp_path / "docs") == ["found"]
    assert (tmp_path / "docs/found.png").read_bytes() == b"new"


def test_csv_has_a_header_and_six_digits(tmp_path):
    class Row(NamedTuple):
        name: str
        value: float

    tables.write_csv([Row("a", 1 / 3)], tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "name,value\na,0.333333\n"


def test_every_table_of_the_readme_has_both_its_marks():
    text = tables.README.read_text()
    begun = text.count(": measured by a command -->")
    assert begun == len(tables.TABLE.findall(text)) > 0
