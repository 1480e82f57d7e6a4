import sys

import pytest

from mnv2.runtime.config_file import prepared
from mnv2.runtime.errors import UserError


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two packages `some_configs`: one beside the config file, and a stranger on the path."""
    for place in ("own", "stranger"):
        folder = tmp_path / place / "some_configs"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder / "neighbour.py").write_text(f"place = {place!r}")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "stranger"), *sys.path])
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("some_configs")]:
        del sys.modules[name]


def test_a_config_file_imports_its_own_neighbours_and_not_those_of_a_stranger(folders):
    config = folders / "own/some_configs/own.py"
    config.write_text("")
    prepared(["main", f"--config={config}"])
    from some_configs import neighbour

    assert neighbour.place == "own"


def test_a_stranger_that_is_in_use_already_is_named(folders):
    import some_configs  # noqa: F401

    config = folders / "own/some_configs/own.py"
    config.write_text("")
    with pytest.raises(UserError, match=r"another package some_configs is in use, from .*stranger"):
        prepared(["main", "--config", str(config)])
