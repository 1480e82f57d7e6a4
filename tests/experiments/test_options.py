"""The command lines of the experiments: each teaches, and refuses numbers that cannot be."""

import importlib
import re
import sys
from pathlib import Path

import pytest

FILES = (Path(__file__).parents[2] / "experiments").glob("*.py")
NAMES = sorted(path.stem for path in FILES if "add_argument" in path.read_text())


def output_of(name, monkeypatch, capsys, *arguments):
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code, capsys.readouterr()


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches_and_no_number_is_taken_that_cannot_be(name, monkeypatch, capsys, tmp_path):
    code, printed = output_of(name, monkeypatch, capsys, "--help")
    assert code == 0
    printed_help = printed.out
    assert importlib.import_module(f"experiments.{name}").__doc__.splitlines()[0] in printed.out
    numbers = set(re.findall(r"--(rounds|seconds|steps|seeds|pairs|draws|batch)\b", printed.out))
    for option in numbers:
        for value in ("-1", "nan", "x"):
            arguments = [f"--{option}={value}", f"--out={tmp_path}/never"]
            if "--out" not in printed_help:
                arguments.pop()
            code, printed = output_of(name, monkeypatch, capsys, *arguments)
            assert code == 2
            assert re.fullmatch(rf"error: --{option} must be .*, got '{value}'.*\n", printed.err)
    assert not list(tmp_path.iterdir())
