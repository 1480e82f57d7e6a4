import os
from pathlib import Path

import jax
import pytest
import tensorflow as tf

from mnv2.data import datasets
from mnv2.runtime import machine
from mnv2.runtime.errors import UserError
from mnv2.runtime.machine import describe_devices, find_devices
from tests.commands import SERVER


def test_devices_are_counted_by_kind():
    assert describe_devices(["cpu"]) == "cpu"
    assert describe_devices(["TPU v4", "TPU v4", "cpu"]) == "2 x TPU v4, cpu"


def test_a_platform_that_cannot_be_used_is_one_line(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no\ndevices")

    monkeypatch.setattr(jax, "devices", devices)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", "tpu,cpu")
    try:
        with pytest.raises(UserError, match=r"there is no TPU here .* tpu,cpu: .*no devices") as e:
            find_devices()
    finally:
        jax.config.update("jax_platforms", before)
    assert "\n" not in str(e.value)


def note_threads(path):
    os.environ["NPROC"] = "3"
    datasets._leave_the_machine_to_jax()
    threading = tf.config.threading
    found = (threading.get_intra_op_parallelism_threads, threading.get_inter_op_parallelism_threads)
    path.write_text(" ".join(str(count()) for count in found))


def test_tensorflow_has_the_threads_of_a_run(tmp_path):
    process = SERVER.Process(target=note_threads, args=(tmp_path / "threads",))
    process.start()
    process.join()
    assert (tmp_path / "threads").read_text() == "3 3"


@pytest.mark.parametrize(
    ("setting", "files", "variables", "libc", "helps"),
    [
        ("always [madvise] never", (), {}, "glibc", True),
        ("[always] madvise never", (), {}, "glibc", True),
        ("always madvise [never]", (), {}, "glibc", False),
        (None, (), {}, "glibc", False),
        ("[always]", ("nvidia0",), {}, "glibc", False),
        ("[always]", ("accel0",), {}, "glibc", False),
        ("[always]", (), {"GLIBC_TUNABLES": ""}, "glibc", False),
        ("[always]", (), {}, "musl", False),
    ],
)
def test_copies_allocate_in_huge_pages_where_they_help(
    tmp_path, monkeypatch, setting, files, variables, libc, helps
):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if setting is not None:
        (tmp_path / "enabled").write_text(setting)
    for name in files:
        (tmp_path / name).touch()
    monkeypatch.setattr(machine, "HUGE_PAGES", tmp_path / "enabled")
    monkeypatch.setattr(machine, "DEV", tmp_path)
    monkeypatch.setattr(machine.system, "libc_ver", lambda: (libc, ""))
    assert bool(machine.huge_pages()) == helps


@pytest.fixture
def no_folder_chosen(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_kept_in_the_users_cache(no_folder_chosen, tmp_path):
    machine.keep_compiled_programs()
    folder = Path(jax.config.jax_compilation_cache_dir)
    assert folder.parent == tmp_path / "mnv2" / "compiled"


def test_a_folder_that_the_user_chose_is_left_alone(no_folder_chosen, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    machine.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_another_processor_has_a_folder_of_its_own(no_folder_chosen, monkeypatch, tmp_path):
    ours = machine._processor()
    other = tmp_path / "cpuinfo"
    other.write_text("flags\t: fpu vme\n")
    monkeypatch.setattr(machine, "CPU_INFO", other)
    assert machine._processor() != ours


def test_without_proc_as_on_macos_there_is_a_folder_too(no_folder_chosen, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    machine.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir
