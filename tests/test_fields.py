"""docs/fields.md is made from the table of fields."""

from mnv2.training.config import FIELDS
from tests import fields


def test_the_page_has_the_fields_of_the_code():
    page = fields.PAGE.read_text(encoding="utf-8")
    assert page == fields.page(), "make fields"
    assert all(f"| `{name}` |" in page for name in FIELDS)
