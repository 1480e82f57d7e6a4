"""What CONTRIBUTING.md says is true."""

from pathlib import Path

from tests.rooms import CONTRIBUTING, diagram, rooms

PACKAGE = Path(__file__).parents[1] / "mnv2"


def test_the_diagram_of_the_rooms_is_that_of_the_imports():
    assert diagram() in CONTRIBUTING.read_text()
    assert len(rooms()) >= 8


def test_every_room_is_described():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders
    for room in folders:
        assert f"| `{room}/` |" in CONTRIBUTING.read_text()
