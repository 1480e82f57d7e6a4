"""What CONTRIBUTING.md says is true."""

from pathlib import Path

from tests.packages import CONTRIBUTING, diagram, packages

PACKAGE = Path(__file__).parents[1] / "mnv2"


def test_the_diagram_of_the_packages_is_that_of_the_imports():
    assert diagram() in CONTRIBUTING.read_text()
    assert len(packages()) >= 8


def test_every_package_is_described():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders
    for package in folders:
        assert f"| `{package}/` |" in CONTRIBUTING.read_text()
