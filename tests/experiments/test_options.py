"""The command lines of the experiments: each teaches, and refuses numbers that cannot be."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "experiments"
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "command_parser" in path.read_text()
)


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


def test_an_old_name_says_the_new_one():
    command = [sys.executable, "-m", "experiments.complexity"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: experiments.complexity is now experiments.paper.complexity\n"
