import io

import pytest
from rich.console import Console

from mnv2.sweeps import display
from mnv2.sweeps.display import Display
from mnv2.sweeps.plan import Outcome, plan
from mnv2.training.progress import Progress

RESULT = {"test": {"accuracy": 0.8123}, "images_per_second": 3456.7, "waiting_for_input": 0.2}


@pytest.fixture
def runs(three_runs, tmp_path):
    three_runs.arms = (("a", {}), ("[red]b[/red]", {}), ("a_rather_long_name_of_an_arm", {}))
    return plan(three_runs, tmp_path)


def test_in_a_file_each_run_that_ends_is_a_line(runs, capsys):
    with Display(runs, runs[:2], {}, workers=1) as shown:
        shown.started(0, runs[0])
        shown.now(0, "compiling")
        shown.now(0, Progress(1, 2, 0.5, 100.0, 1.0))
        shown.ended(0, Outcome(RESULT, seconds=33.0))
        shown.started(0, runs[1])
        shown.ended(0, Outcome(failure="no luck"))
        shown.say("the same", once=True)
        shown.say("the same", once=True)
    assert capsys.readouterr().out.splitlines() == [
        "[2/3] a/0                     test 81.23 %   3,457 images/s    33 s  20% waiting for input"
        "  0 s left",
        "[3/3] [red]b[/red]/0          failed: no luck",
        "the same",
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40)])
def test_in_a_terminal_every_worker_has_a_line_that_fits(runs, monkeypatch, width, height):
    written = io.StringIO()
    options = {"width": width, "height": height, "file": written}
    monkeypatch.setattr(display, "Console", lambda **given: Console(**given, **options))
    shown = Display(runs, runs[1:], {"a": {0: RESULT}}, workers=12)
    shown.started(0, runs[1])
    shown.now(0, Progress(350, 500, 0.4321, 1234.5, 75.0))
    shown.started(1, runs[2])
    shown.now(1, "compiling")
    shown.left = 600.0
    shown._console.print(shown._render())
    lines = written.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].split() == ["run", "step", "loss", "images/s", "left"]
    assert lines[1].split() == ["[red]b[/red]/0", "350/500", "0.432", "1,234", "75", "s"]
    assert lines[2].split() == ["a_rather_long_name_of_an_arm/0", "compiling"]
    assert "and 4 workers more" in lines
    assert any(line.split() == ["a", "81.23", "1", "of", "1"] for line in lines)
    assert lines[-1].startswith("1 of 3 runs done in 0 s  10 min left")
