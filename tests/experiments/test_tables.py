import pytest

from experiments import tables
from experiments.common.experiment import Table

README = """# Results
<!-- found: measured by a command -->
| old |
<!-- end of found -->
Text in between.
<!-- other: measured by a command -->
| kept |
<!-- end of other -->
![a figure](../../docs/found.png) ![another](../../docs/other.png) ![of a page](photograph.jpg)
"""


def test_tables_are_filled_between_their_markers_and_nothing_else_changes(tmp_path):
    Table("found", ("a", "b"), [("x", 1), ("y", 2.5)]).write(tmp_path / "runs" / "some")
    text, missing = tables.fill(README, tmp_path / "runs")
    assert missing == ["other"]
    assert text == README.replace("| old |", "| a | b |\n| --- | --: |\n| x | 1 |\n| y | 2.5 |")
    assert tables.fill(text, tmp_path / "runs") == (text, missing)


def test_existing_figures_are_copied(tmp_path):
    (tmp_path / "runs/found").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "runs/found/report.png").write_bytes(b"new")
    (tmp_path / "runs/photograph").mkdir()
    (tmp_path / "runs/photograph/photograph.jpg").write_bytes(b"seen")
    copied = tables.copy_figures(README, tmp_path / "runs", tmp_path / "docs")
    assert copied == ["found", "photograph"]
    assert (tmp_path / "docs/photograph.jpg").read_bytes() == b"seen"
    assert (tmp_path / "docs/found.png").read_bytes() == b"new"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_every_table_of_a_page_has_both_markers(page):
    text = page.read_text()
    assert text.count(": measured by a command -->") == len(tables.TABLE.findall(text)) > 0
