import contextlib
import errno
import json
import os
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from mnv2.runtime import files, machine, terminal
from mnv2.runtime.errors import UserError

HOLD = """
import sys
from pathlib import Path
from mnv2.runtime.files import sole_writer
with sole_writer(Path(sys.argv[1])):
    print("holding", flush=True)
    sys.stdin.read()
"""

# Writes one JSON file again and again, in four threads.
WRITE = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from mnv2.runtime.files import write_json
def work(thread):
    for number in range(50):
        write_json(Path(sys.argv[1]), {"writer": [sys.argv[2], thread] * 500, "number": number})
with ThreadPoolExecutor(4) as threads:
    list(threads.map(work, range(4)))
"""


@pytest.fixture(autouse=True)
def nothing_said_yet():
    terminal.warn_once.cache_clear()


def test_a_folder_has_one_writer_and_says_who(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "holding\n"
        assert files.holder(tmp_path).startswith(f"process {process.pid} on ")
        with pytest.raises(files.Held, match=f"process {process.pid} on "):
            files.sole_writer(tmp_path).__enter__()
        process.kill()
    with files.sole_writer(tmp_path):  # the lock ended with its process
        pass
    assert files.holder(tmp_path) is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "file.json"
    files.write_json(path, {"a": 1})
    files.write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 2\n}\n'
    assert list(path.parent.iterdir()) == [path]


def test_several_processes_and_threads_may_write_one_file_at_the_same_time(tmp_path):
    path = tmp_path / "file.json"
    files.write_json(path, {"writer": [0, 0] * 500})
    command = [sys.executable, "-c", WRITE, str(path)]
    writers = [
        subprocess.Popen([*command, str(which)], stderr=subprocess.PIPE, text=True)
        for which in range(3)
    ]
    while any(writer.poll() is None for writer in writers):
        assert len(json.loads(path.read_text())["writer"]) == 1000
    for writer in writers:
        assert writer.wait() == 0, writer.communicate()[1]
        writer.stderr.close()
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    files.write_json(path, {"a": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 2})
    monkeypatch.undo()
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path, "a folder has this name")
    assert list(tmp_path.iterdir()) == [path]
    assert files.read_json(path, "") == {"a": 1}


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    (tmp_path / f".0123{files.UNFINISHED}").write_text("half")
    with files.sole_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -np.inf, np.float64("nan")])
def test_no_json_holds_a_number_that_is_not_finite(tmp_path, number):
    value = {"test": {"loss": [1.0, {"of": number}]}, "steps": 3}
    with pytest.raises(UserError, match=r"^test\.loss\[1\]\.of is -?(nan|inf), which is not"):
        files.to_json(value)
    path = tmp_path / "result.json"
    with pytest.raises(UserError, match=r"^test\.loss\[1\]\.of is"):
        files.write_json(path, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": 1', "Expecting ',' delimiter: line 1 column 8 (char 7)"),
        (b"[1, 2]", "it holds a list and no object"),
        (b"null", "it holds a NoneType and no object"),
        (b'{"a": NaN}', "it holds NaN"),
        (b'{"a": -Infinity}', "it holds -Infinity"),
        (b"\xfa", "'utf-8' codec can't decode byte 0xfa in position 0: invalid start byte"),
        (
            b"[" * 100_000,
            "maximum recursion depth exceeded while decoding a JSON array from a unicode string",
        ),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(tmp_path, content, reason):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        files.read_json(path, "delete it")
    assert str(error.value) == f"{path} is damaged ({reason}): delete it"


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory; delete it"):
        files.read_json(tmp_path, "delete it")


def test_lines_are_kept_and_a_line_that_is_being_written_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert files.read_lines(path) == [{"step": 1}, {"step": 2}]
    files.keep_lines(path, lambda values: values["step"] < 2)
    assert path.read_text() == '{"step": 1}\n'
    assert files.read_lines(tmp_path / "none") == []


@pytest.mark.parametrize(
    "line", ["", "step 2", "[2]", '{"step": 2', "\x00", '{"other": 2}', '{"step": NaN}']
)
def test_a_damaged_line_is_named_and_the_file_stays(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"line 2 of .*metrics.jsonl is damaged: delete that line"):
        files.keep_lines(path, lambda values: values["step"] < 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize("number", files.NO_LOCKS)
def test_where_files_cannot_be_locked_one_warning_says_so(tmp_path, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    for folder in (tmp_path / "a", tmp_path / "b"):
        with files.sole_writer(folder), files.locked(folder / "other"):
            assert files.holder(folder) is None
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("warning: files are not locked, because their file system has no locks")
    assert os.strerror(number) in said


def test_without_fcntl_as_on_windows_one_warning_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "fcntl", None)
    with files.sole_writer(tmp_path), files.locked(tmp_path / "other"):
        pass
    assert "this operating system has no locks" in capsys.readouterr().err


def test_another_error_of_a_lock_is_not_hidden(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), files.sole_writer(tmp_path):
        pass


@pytest.fixture
def no_home(monkeypatch):
    """A user without a home folder."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", home)


@pytest.fixture
def no_programs_kept():
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def test_without_a_home_nothing_is_cached_and_one_warning_says_so(
    no_home, no_programs_kept, capsys
):
    files.write_cache("pictures/a.json", lambda path: path.write_text('{"a": 1}'))
    assert files.read_cache("pictures/a.json") == {}
    machine.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
    said = capsys.readouterr().err
    assert said == (
        "warning: nothing is cached, because this user has no home folder; "
        "XDG_CACHE_HOME chooses another folder\n"
    )


def test_where_nothing_can_be_written_nothing_is_cached_and_one_warning_says_so(
    no_programs_kept, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    files.write_cache("pictures/a.json", lambda path: path.write_text('{"a": 1}'))
    assert files.read_cache("pictures/a.json") == {}
    machine.keep_compiled_programs()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"cannot write to {tmp_path}/file/mnv2: Not a directory" in said


def test_a_chosen_folder_for_programs_that_cannot_be_written_is_left(
    no_programs_kept, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
    machine.keep_compiled_programs()
    assert jax.config.jax_compilation_cache_dir is None
    assert f"compiled programs are not kept: cannot write to {tmp_path}/file" in (
        capsys.readouterr().err
    )


def test_a_damaged_cache_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files.write_cache("pictures/a.json", lambda path: path.write_text('{"a": 1}'))
    assert files.read_cache("pictures/a.json") == {"a": 1}
    (tmp_path / "mnv2/pictures/a.json").write_text('{"a": ')
    assert files.read_cache("pictures/a.json") == {}


def test_a_lock_is_waited_for(tmp_path):
    inside, order = threading.Event(), []

    def second():
        inside.wait()
        with files.locked(tmp_path / "lock"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with contextlib.suppress(ValueError), files.locked(tmp_path / "lock"):
        inside.set()
        thread.join(0.2)
        order.append("first")
        raise ValueError
    thread.join()
    assert order == ["first", "second"]
