from pathlib import Path

import jax
import pytest

from mnv2.runtime import compilation_cache


@pytest.fixture
def no_folder_chosen(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache(no_folder_chosen, tmp_path):
    folder = compilation_cache.enable()
    assert Path(folder).parent == tmp_path / "mnv2" / "compiled"
    assert jax.config.jax_compilation_cache_dir == folder


def test_a_folder_that_the_user_chose_is_left_alone(no_folder_chosen, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    assert compilation_cache.enable() == str(tmp_path / "mine")


def test_another_processor_has_a_folder_of_its_own(no_folder_chosen, monkeypatch, tmp_path):
    ours = compilation_cache._processor()
    other = tmp_path / "cpuinfo"
    other.write_text("flags\t: fpu vme\n")
    monkeypatch.setattr(compilation_cache, "CPU_INFO", other)
    assert compilation_cache._processor() != ours


def test_without_proc_as_on_macos_there_is_a_folder_too(no_folder_chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "CPU_INFO", tmp_path / "none")
    assert compilation_cache.enable()
