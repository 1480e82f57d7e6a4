import dataclasses
import io
import json

import pytest
from rich.console import Console

from mnv2.runtime.terminal import WAITING_REMEDY
from mnv2.sweeps import display
from mnv2.sweeps.display import Display
from mnv2.sweeps.plan import Run
from mnv2.training.config import Settings

RESULT = {"test": {"accuracy": 0.8123}, "images_per_second": 3456.7, "waiting_for_input": 0.2}
ARMS = ("a", "[red]b[red]", "a_rather_long_name_of_an_arm")


@pytest.fixture
def runs(tmp_path):
    """Three runs, the first of which is finished."""
    (tmp_path / "a/0").mkdir(parents=True)
    (tmp_path / "a/0/result.json").write_text(json.dumps({**RESULT, "steps": 500}))
    return [
        Run(arm, 0, tmp_path / arm / "0", {}, Settings({}), 500, multiply_adds=10) for arm in ARMS
    ]


def test_in_a_file_each_run_that_ends_is_a_line(runs, capsys):
    with Display() as shown:
        shown.show(runs)
        shown.now(0, {"run": f"{ARMS[1]}/0", "phase": "compiling"})
        shown.ended({"run": f"{ARMS[1]}/0", "result": RESULT, "seconds": 33.0})
        shown.ended({"run": f"{ARMS[2]}/0", "failure": "no luck", "seconds": 1.0})
        shown.say("the same", once=True)
        shown.say("the same", once=True)
        shown.say("a note", is_error=True)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "[2/3] [red]b[red]/0           test 81.23 %   3,457 images/s    33 s  "
        "20% waiting for input",
        WAITING_REMEDY,
        "[3/3] a_rather_long_name_of_an_arm/0  failed: no luck",
        "the same",
    ]
    assert printed.err == "a note\n"


def test_the_time_left_is_that_of_all_steps_that_are_left(runs):
    shown = Display()
    shown.show(runs)
    assert shown.seconds_left() == 0  # nothing is known
    now = {"run": f"{ARMS[1]}/0", "phase": "training", "step": 100, "seconds_per_step": 0.5}
    shown.now(0, now)
    # 400 steps of the one, and 500 of the other, which has as many multiply-adds.
    assert shown.seconds_left() == pytest.approx(450)
    shown.now(1, {"run": f"{ARMS[2]}/0", "phase": "compiling"})
    assert shown.seconds_left() == pytest.approx(225)
    shown.show([*runs[:2], dataclasses.replace(runs[2], multiply_adds=20)])
    assert shown.seconds_left() == pytest.approx((400 * 0.5 + 500 * 1.0) / 2)


@pytest.mark.parametrize("width", [80, 120])
def test_in_a_terminal_every_copy_has_a_line_that_fits(runs, monkeypatch, width):
    written = io.StringIO()
    options = {"width": width, "height": 24, "file": written}
    monkeypatch.setattr(display, "Console", lambda **given: Console(**given, **options))
    shown = Display()
    shown.show(runs)
    progress = {"step": 350, "steps": 500, "loss": 0.4321, "images_per_second": 1234.5}
    for copy in range(12):
        now = {"run": f"{ARMS[1 + copy % 2]}/0", "phase": "training", "seconds_left": 75.0}
        shown.now(copy, {**now, **progress} if copy else {**now, "phase": "compiling"})
    shown._console.print(shown._render())
    lines = written.getvalue().splitlines()
    assert len(lines) == 14
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("1 of 3 runs done in 0 s")
    assert lines[1].split() == ["run", "phase", "step", "loss", "images/s", "left"]
    assert lines[2].split() == ["[red]b[red]/0", "compiling"]
    assert lines[3].split()[1:] == ["training", "350/500", "0.432", "1,234", "75", "s"]
