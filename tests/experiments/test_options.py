"""The command lines of the experiments: each teaches, and refuses numbers that cannot be."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.common.experiment import OPTIONS, experiment_parser

FOLDER = Path(__file__).parents[2] / "experiments"
NAMES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if "_parser(" in path.read_text() and path.parent.name != "common"
)


@pytest.mark.parametrize("name", NAMES)
def test_help_teaches(name, monkeypatch, capsys):
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("value", ["-1", "nan", "x"])
@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "workdir"])
def test_no_number_is_taken_that_cannot_be(option, value, capsys):
    with pytest.raises(SystemExit) as ended:
        experiment_parser(__file__, "", **{option: 1}).parse_args([f"--{option}={value}"])
    assert ended.value.code == 2
    message = rf"error: --{option} must be .*, got '{value}'.*\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_an_old_name_says_the_new_one():
    command = [sys.executable, "-m", "experiments.complexity"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: experiments.complexity is now experiments.paper.complexity\n"
