import sys

from experiments.speed import scaling
from experiments.speed.frameworks.tasks import Task
from experiments.speed.frameworks.turns import Row


def test_each_field_is_varied_alone_and_drawn(monkeypatch, tmp_path):
    measured = []

    def made_up(task, settings, names, rounds, seconds):
        measured.append(task)
        return [Row(task, settings, name, (90.0, 100.0), 2**30) for name in names]

    monkeypatch.setattr(scaling, "measure", made_up)
    monkeypatch.setattr(scaling, "installed", lambda _: ["mnv2"])
    monkeypatch.setattr(sys, "argv", ["scaling", "--out", str(tmp_path)])
    scaling.main()
    assert len(measured) == len(set(measured))
    base = measured[2]
    for task in measured:
        changed = [field for field in vars(base) if getattr(task, field) != getattr(base, field)]
        assert len(changed) == (task != base)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000
    assert len((tmp_path / "scaling.csv").read_text().splitlines()) == 1 + len(measured)


def test_threads_are_powers_of_two_up_to_the_processors():
    curves = scaling.series(Task(threads=6), cores=6)
    assert [task.threads for task in curves["threads"]] == [1, 2, 4, 6]
    assert [task.batch for task in curves["batch"]] == [1, 8, 32, 128]
