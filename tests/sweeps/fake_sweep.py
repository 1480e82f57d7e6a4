"""A sweep whose copies only pretend to train, because imports take seconds.

    python -m tests.sweeps.fake_sweep WORKDIR COPIES THEN NAME

The copies write what they did into the folder of each run. THEN says what they do with the run
NAME, or with every run if NAME is "all": see `execute`.
"""

import contextlib
import json
import os
import signal
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest import mock

import ml_collections

from mnv2.runtime import files
from mnv2.runtime.cli import one_line_errors
from mnv2.runtime.errors import Held
from mnv2.sweeps import launch
from mnv2.sweeps import plan as plans

ARMS = ("c", "b", "a")  # the longest first
RESULT = {
    "test": {"accuracy": 0.5},
    **{"parameters": 1, "multiply_adds": 1, "train_seconds": 1.0, "images_per_second": 1.0},
    **{"waiting_for_input": 0.0, "steps": 10, "first_step_seconds": 1.0},
}


def work(request: Any, folder: Path, number: int) -> None:
    """Stands for `mnv2.sweeps.run.work`."""
    _, copies, then, wanted = sys.argv[1:]
    if plans.read_plan(folder) is None:
        if then == "refuses":
            print("error: no such data", file=sys.stderr)
            sys.exit(2)
        plan(request.workdir, int(copies)).write(folder)
    for one in plans.read_plan(folder).runs:
        if one.name in plans.failures(folder):
            continue
        with contextlib.suppress(Held), files.sole_writer(one.folder):
            if one.finished:  # perhaps by another copy a moment ago
                continue
            here = wanted in ("all", one.name)
            say(folder, number, one.name)
            outcome = execute(one.folder, then if here else "", folder, number)
            ended = {"run": one.name, "seconds": 1.0, **outcome}
            files.append_line(folder / f"ended-{number}.jsonl", json.dumps(ended))


def plan(workdir: Path, copies: int) -> plans.Plan:
    """Returns the plan of three runs, and writes the description of the sweep."""
    config = {
        **{"seed": 0, "seeds": 1, "batch_size": 1, "duration": "10 steps", "baseline": "a"},
        **{"arms": [["a", {}], ["b", {}], ["c", {}]], "panels": [], "model": {}},
        **{"data": {"name": "pictures"}, "optimization": {}},
    }
    files.write_json(workdir / "sweep.json", {"config": config, "steps": {}})
    settings: Any = None
    runs = [plans.Run(arm, 0, workdir / arm / "0", {}, settings, 10) for arm in ARMS]
    environments = [{"NPROC": str(copy + 1)} for copy in range(copies)]
    return plans.Plan(runs, copies, environments, True)


def say(folder: Path, number: int, name: str) -> None:
    """Says which run a copy executes."""
    now = json.dumps({"run": name, "phase": "training"})
    files.write_text(folder / f"copy-{number}.json", now)


def execute(run: Path, then: str, folder: Path, number: int) -> dict[str, Any]:
    """Pretends to execute a run, and does with it what `then` says."""
    with (run / "attempts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('NPROC')}\n")
    attempts = (run / "attempts").read_text().count("\n")
    once = attempts == 1
    if then == "fails":
        return {"failure": "ValueError: no luck"}
    if then == "is killed" or (then == "is killed once" and once):
        print("out of luck", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "dies" or (then == "dies once" and once):
        sys.exit(1)
    if then in ("waits", "ignores"):
        noted: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: noted.append(1))
        (run / "begun").touch()
        while not noted or then == "ignores":
            time.sleep(0.01)
        (run / "saved").touch()
        sys.exit(75)
    if then == "prints":
        print("warning: the same for all", file=sys.stderr, flush=True)
    if then == "takes long":  # until another copy has found something to do
        while not (run.parents[1] / "b").exists():
            time.sleep(0.01)
    files.write_text(run / "result.json", json.dumps(RESULT))
    return {"result": RESULT}


def main() -> None:
    fake = types.ModuleType("mnv2.sweeps.run")
    fake.work = work  # type: ignore[attr-defined]
    sys.modules["mnv2.sweeps.run"] = fake
    # What reports are made with takes a second to import, and no report is written here.
    of_reports = ("scipy", "matplotlib", "matplotlib.axes", "matplotlib.figure")
    sys.modules.update(dict.fromkeys(of_reports, mock.MagicMock()))
    launch.GLANCE_SECONDS = 0.02
    if sys.argv[3] == "ignores":
        launch.STOPPING_SECONDS = 1.0
    with one_line_errors(resumes=True):
        workdir = Path(sys.argv[1])
        if sys.argv[3] == "tunes":  # a sweep before the other one, as tuning is
            launch.run_sweep(ml_collections.ConfigDict(), workdir / "tuning", reports=False)
        launch.run_sweep(ml_collections.ConfigDict(), workdir, reports=False)


if __name__ == "__main__":
    main()
