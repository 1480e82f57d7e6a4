import csv

import numpy as np
import pytest

from mnv2.analysis import confusion
from mnv2.runtime.files import write_text

# Dollars as around formulas, bytes that are no UTF-8, other scripts, commas, quotes, lines.
NAMES = ["$5", "$10_$20", r"\$", "caf\udce9", "caf\udcea", "猫,犬", 'a "b"', "two\nlines", "\ud800"]


@pytest.mark.filterwarnings("ignore:Glyph")
def test_names_of_any_kind_are_drawn_and_written(tmp_path):
    matrix = np.eye(len(NAMES), dtype=int)
    confusion.draw(matrix, NAMES, "runs/$x_$y caf\udce9", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 1000
    write_text(tmp_path / "confusion.csv", confusion.to_csv(matrix[:-1], NAMES[:-1]))
    with (tmp_path / "confusion.csv").open(encoding="utf-8", errors="surrogateescape") as file:
        assert next(csv.reader(file)) == ["", *NAMES[:-1]]
    write_text(tmp_path / "half.csv", NAMES[-1])
    assert (tmp_path / "half.csv").read_bytes() == b"?"
