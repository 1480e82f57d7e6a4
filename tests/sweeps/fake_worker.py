"""Stands for `mnv2.sweeps.worker`, whose imports take seconds: python fake_worker.py THEN NAME ...

It writes what it did into the folder of each run. THEN says what it does with the run NAME, or with
every run if NAME is "all": see `_execute`.
"""

import json
import os
import signal
import sys
import time
import types
from multiprocessing.connection import Connection
from typing import Any, NamedTuple


class _Package(types.ModuleType):
    """Takes the place of a module of mnv2: all of its classes are plain objects."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Plain,), {"__module__": self.__name__})


class _Plain:
    def __new__(cls, *_: Any) -> Any:
        return super().__new__(cls)


for name in ("", ".sweeps", ".sweeps.plan", ".training", ".training.settings"):
    sys.modules[f"mnv2{name}"] = _Package(f"mnv2{name}")
    sys.modules[f"mnv2{name}"].__path__ = []


class Outcome(NamedTuple):
    result: dict[str, Any] | None = None
    failure: str | None = None
    holder: str | None = None
    seconds: float = 0.0


Outcome.__module__ = "mnv2.sweeps.plan"
sys.modules["mnv2.sweeps.plan"].Outcome = Outcome  # type: ignore[attr-defined]


def _execute(run: Any, parent: Connection, then: str) -> Outcome:
    folder = run.folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attempts").open("a") as file:
        file.write(f"{os.getpid()} {os.environ.get('NPROC')}\n")
    attempts = (folder / "attempts").read_text().count("\n")
    parent.send("compiling")
    parent.send("training")
    if then == "held" or (then == "held once" and attempts == 1):
        return Outcome(holder="process 7")
    if then == "fails":
        return Outcome(failure="ValueError: no luck")
    if then == "dies" or (then == "dies once" and attempts == 1):
        print("out of luck", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if then in ("waits", "ignores"):
        saved: list[int] = []
        signal.signal(signal.SIGTERM, lambda *_: saved.append(1))
        (folder / "begun").touch()
        while not saved or then == "ignores":
            time.sleep(0.01)
        (folder / "saved").touch()
        sys.exit(75)
    if then == "prints":
        print("warning: the same for all", file=sys.stderr, flush=True)
    result = {"test": {"accuracy": 0.5}, "parameters": 1, "multiply_adds": 1, "train_seconds": 1.0,
              "images_per_second": 1.0, "waiting_for_input": 0.0, "steps": run.steps,
              "first_step_seconds": 1.0}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return Outcome(result, seconds=1.0)


def main() -> None:
    then, name, stream, _ = sys.argv[1:]
    parent = Connection(int(stream))
    while (run := parent.recv()) is not None:
        here = name in ("all", f"{run.arm}/{run.seed}")
        parent.send(_execute(run, parent, then if here else ""))


if __name__ == "__main__":
    main()
