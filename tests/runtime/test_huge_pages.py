"""The restart for huge pages: a new process is not started here, it is only recorded."""

import sys
import types

import pytest

from mnv2.runtime import huge_pages


class Restarted(BaseException):
    """Stands for the new process."""


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Lets huge pages help, and starts nothing; `start(words)` returns the new command or None."""
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never")
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    monkeypatch.delenv("PYTHONINSPECT", raising=False)
    monkeypatch.setattr(huge_pages, "HUGE_PAGES", setting)
    monkeypatch.setattr(huge_pages, "DEVICES", tmp_path)
    monkeypatch.setattr(huge_pages, "CONNECTED", ())  # these tests run in pytest
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "gettrace", lambda: None)  # coverage may watch the tests
    monkeypatch.setattr(sys, "getprofile", lambda: None)
    calls = []

    def execve(path, words, environment):
        calls.append((path, words, environment))
        raise Restarted

    monkeypatch.setattr(huge_pages.os, "execve", execve)

    def start(words, arguments=()):
        monkeypatch.setattr(sys, "orig_argv", [*words, *arguments])
        monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
        calls.clear()
        try:
            huge_pages.restart_with_huge_pages()
        except Restarted:
            ((path, command, environment),) = calls
            assert path == command[0] == sys.executable
            assert environment[huge_pages.VARIABLE] == huge_pages.TUNABLES
            return command[1:]
        return None

    return start


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "mnv2.main"],
        ["/usr/bin/python3.12", "-X", "dev", "-W", "error::ValueError", "-m", "mnv2.main"],
        ["python3", "-m", "cProfile", "-o", "F", "-m", "mnv2.main"],
        ["/venv/bin/python", "/venv/bin/mnv2", "train"],
        ["python", "-m", "mnv2", "train"],
        ["python3.13t", "-I", "-m", "mnv2.main"],
    ],
)
def test_a_restart_keeps_every_option(started, words):
    arguments = ["--config", "configs/v2_ablation.py", "--only", "a b"]
    assert started(words, arguments) == [*words[1:], *arguments]


@pytest.mark.parametrize(
    "words",
    [
        ["python", "-m", "pdb", "-m", "mnv2.main"],
        ["python", "-mdebugpy", "--listen", "5678", "-m", "mnv2.main"],
        ["python", "-m", "coverage", "run", "-m", "mnv2.main"],
        ["python", "-m", "trace", "--count", "main.py"],
        ["/usr/sbin/uwsgi", "--ini", "x"],
        ["/opt/app/app"],
        [],
    ],
)
def test_nothing_restarts_that_would_be_lost(started, words, capsys):
    assert started(words) is None
    said = capsys.readouterr()
    assert said.err.startswith("note: not allocating in huge pages, because ")
    assert said.err.count("\n") == 1
    assert not said.out


def test_a_tracer_a_profiler_and_an_interactive_python_stay(started, monkeypatch):
    words = ["python", "-m", "mnv2.main"]
    for attribute in ("gettrace", "getprofile"):
        with monkeypatch.context() as patch:
            patch.setattr(sys, attribute, lambda: print)
            assert started(words) is None
    tool = next(number for number in range(6) if not sys.monitoring.get_tool(number))
    sys.monitoring.use_tool_id(tool, "a profiler")
    try:
        assert started(words) is None
        assert started(["python", "-m", "cProfile", "-m", "mnv2.main"]) is not None
        assert started(words, ["--only", "cProfile"]) is None  # its own argument
    finally:
        sys.monitoring.free_tool_id(tool)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONINSPECT", "1")
        assert started(words) is None
    monkeypatch.setattr(huge_pages, "CONNECTED", ("pytest",))
    assert started(words) is None


def test_a_notebook_stays_and_an_imported_ipython_does_not_matter(started, monkeypatch):
    words = ["python", "-m", "mnv2.main"]
    for shell, restarts in ((None, True), (object(), False)):
        ipython = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        assert (started(words) is not None) == restarts


def test_where_huge_pages_cannot_help_nothing_restarts(started, monkeypatch, tmp_path):
    words = ["python", "-m", "mnv2.main"]
    assert started(words) is not None
    for content in ("always madvise [never]", None):
        if content is None:
            (tmp_path / "enabled").unlink()  # no /sys, as on macOS
        else:
            (tmp_path / "enabled").write_text(content)
        assert started(words) is None
    (tmp_path / "enabled").write_text("[always] madvise never")
    (tmp_path / "nvidia0").touch()
    assert started(words) is None
    (tmp_path / "nvidia0").unlink()
    monkeypatch.setenv(huge_pages.VARIABLE, "")
    assert started(words) is None


def test_if_python_cannot_be_started_again_the_command_goes_on(started, monkeypatch, capsys):
    def execve(*_):
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(huge_pages.os, "execve", execve)
    assert started(["python", "-m", "mnv2.main"]) is None
    assert "Python cannot be started again (Argument list too long)" in capsys.readouterr().err
