"""docs/fields.md is made from the table of fields."""

from mnv2.models import NETWORKS
from mnv2.training.config import FIELDS, fields_page
from tests.fields import PAGE


def test_the_page_has_the_fields_of_the_code():
    page = PAGE.read_text(encoding="utf-8")
    assert page == fields_page(NETWORKS), "make fields"
    assert all(f"| `{name}` |" in page for name in FIELDS)
