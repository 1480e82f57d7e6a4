import sys

import pytest

from mnv2.runtime.config_file import _prepared
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


@pytest.mark.parametrize("why", ["imported", "only one with an __init__.py"])
def test_a_stranger_that_is_found_even_so_is_named(why, folders):
    if why == "imported":
        import some_configs  # noqa: F401
    else:
        (folders / "own/some_configs/__init__.py").unlink()
    config = folders / "own/some_configs/own.py"
    config.write_text(NEIGHBOUR)
    with pytest.raises(UserError, match=r"another some_configs is found first, in .*stranger"):
        _prepared(["main", "--config", str(config)])


@pytest.mark.parametrize("name", ["code", "json", "v1.0"])
def test_a_folder_of_any_name_holds_a_config_file_without_neighbours(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", before := [*sys.path])
    (tmp_path / name).mkdir()
    config = tmp_path / name / "own.py"
    config.write_text(f"import {name.partition('.')[0]}\nimport ml_collections\n")
    _prepared(["main", "--config", str(config)])
    assert before[-1] == str(tmp_path)
    assert str(tmp_path) not in before[:-1]
