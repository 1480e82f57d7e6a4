import dataclasses
import json

import pytest

from mnv2.runtime.terminal import WAITING_REMEDY
from mnv2.sweeps.display import Display
from mnv2.sweeps.plan import Run
from mnv2.training.config import Settings

RESULT = {"test": {"accuracy": 0.8123}, "images_per_second": 3456.7, "waiting_for_input": 0.2}
SPEED = {"loss": 0.5, "images_per_second": 1234.5}
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
    now = {"run": f"{ARMS[1]}/0", "phase": "training", "step": 100, "steps": 500, **SPEED}
    shown.now(0, {**now, "seconds_per_step": 0.5})
    # 400 steps of the one, and 500 of the other, which has as many multiply-adds.
    assert shown.seconds_left() == pytest.approx(450)
    shown.now(1, {"run": f"{ARMS[2]}/0", "phase": "compiling"})
    assert shown.seconds_left() == pytest.approx(225)
    shown.show([*runs[:2], dataclasses.replace(runs[2], multiply_adds=20)])
    assert shown.seconds_left() == pytest.approx((400 * 0.5 + 500 * 1.0) / 2)


def test_in_a_terminal_a_line_says_what_goes_on(runs):
    shown = Display()
    shown.show(runs)
    shown.now(0, {"run": f"{ARMS[1]}/0", "phase": "compiling"})
    progress = {"step": 350, "steps": 500, "seconds_per_step": 0.1, **SPEED}
    shown.now(1, {"run": f"{ARMS[2]}/0", "phase": "training", **progress})
    shown.now(2, {})
    assert shown.status() == (
        f"1 of 3 runs done  32 s left  {ARMS[1]}/0 compiling  {ARMS[2]}/0 350/500"
    )
    shown.now(0, {})
    shown.now(1, {"run": f"{ARMS[2]}/0", "phase": "training", **progress})
    assert shown.status().endswith("/0 350/500, loss 0.500, 1,234 images/s")
