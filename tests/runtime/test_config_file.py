import importlib
import sys

import pytest

from mnv2.runtime.config_file import _prepared


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


NEIGHBOUR = "from some_configs import neighbour\n"


@pytest.mark.parametrize("lacking", [[], ["stranger"], ["own", "stranger"]])
def test_a_config_file_imports_its_own_neighbours_and_not_those_of_a_stranger(lacking, folders):
    for place in lacking:
        (folders / place / "some_configs/__init__.py").unlink()
    config = folders / "own/some_configs/own.py"
    config.write_text(NEIGHBOUR)
    _prepared(["main", f"--config={config}"])
    from some_configs import neighbour

    assert neighbour.place == "own"


@pytest.mark.parametrize("name", ["code", "json", "v1.0"])
def test_a_folder_of_any_name_holds_a_config_file(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("code", "json"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / name).mkdir()
    config = tmp_path / name / "own.py"
    config.write_text("")
    _prepared(["main", "--config", str(config)])
    assert str(tmp_path) in sys.path
    for module in ("code", "json"):
        assert importlib.import_module(module).__file__.startswith(sys.base_prefix)
