"""Writes docs/fields.md from the table of fields: python -m tests.fields

A test compares the two.
"""

from pathlib import Path

from mnv2.models import NETWORKS
from mnv2.training.config import fields_page

PAGE = Path(__file__).parents[1] / "docs" / "fields.md"


def main() -> None:
    PAGE.write_text(fields_page(NETWORKS), encoding="utf-8")


if __name__ == "__main__":
    main()
