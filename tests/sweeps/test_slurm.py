import dataclasses
import pickle
import signal
import sys

import pytest
import submitit

from mnv2.runtime.errors import UserError
from mnv2.sweeps import slurm
from mnv2.sweeps.plan import plan


def test_what_slurm_is_asked_for_is_what_was_given():
    wanted = slurm.Resources(
        cores=3, gpus=1, hours=1.5, jobs=2, partition="gpu", account="lab", qos="low", memory="16G"
    )
    script = submitit.slurm.slurm._make_sbatch_string(
        command="x", folder="logs", map_count=4, **slurm._parameters(wanted, jobs=4)
    )
    for line in (
        *("partition=gpu", "cpus-per-task=3", "gpus-per-node=1", "time=90", "array=0-3%2"),
        *("account=lab", "qos=low", "mem=16G"),
    ):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script
    without = slurm._parameters(slurm.Resources(cores=1, gpus=0, hours=1), jobs=7)
    assert not {"partition", "gpus_per_node"} & set(without)
    assert without["array_parallelism"] == 7


def test_without_slurm_it_says_so(three_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    wanted = slurm.Resources(cores=1, gpus=0, hours=1)
    with pytest.raises(UserError, match=r'SLURM takes no jobs here: .*"srun"'):
        slurm.submit(wanted, three_runs, tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'pip install "\.\[slurm\]" in a checkout'):
        slurm.submit(wanted, three_runs, tmp_path)


class _Process:
    """Stands for the launcher of a job: it ends with a code when it gets a signal."""

    def __init__(self, code):
        self.code, self.signals = code, []

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self):
        signal.raise_signal(signal.SIGALRM)
        return self.code


def test_a_job_stops_by_itself_before_its_time_limit(three_runs, tmp_path, monkeypatch):
    """Is queued again, and waits for SLURM to end it."""
    happened, process = [], _Process(75)
    monkeypatch.setattr(slurm.subprocess, "Popen", lambda command: process)
    monkeypatch.setattr(slurm.signal, "alarm", lambda seconds: happened.append(seconds))
    monkeypatch.setattr(slurm.signal, "pause", lambda: happened.append("waits"))
    monkeypatch.setattr(slurm.subprocess, "run", lambda args, **_: happened.append(args))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    numbers = (signal.SIGALRM, signal.SIGUSR2, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in numbers}
    (tmp_path / "slurm").mkdir()
    try:
        resources = slurm.Resources(cores=1, gpus=0, hours=1 / 6)
        with pytest.raises(SystemExit):
            slurm._Job(three_runs, tmp_path, ["a/0"], ["a/0"], resources, True)()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert process.signals == [signal.SIGTERM]
    assert happened == [510, 0, ["scontrol", "requeue", "7_1"], "waits"]
    config, workdir, names, threads = pickle.loads((tmp_path / "slurm/7_1.pickle").read_bytes())
    assert (workdir, names, threads) == (tmp_path, ["a/0"], None)
    assert config.to_dict() == three_runs.to_dict()


def test_short_runs_share_a_job_and_an_array_is_bounded(three_runs, tmp_path, monkeypatch):
    three_runs.seeds = 2
    images = 4 * three_runs.batch_size
    runs = [
        dataclasses.replace(
            one, multiply_adds=round(slurm.WORK * {"a": 0.4, "b": 0.7, "c": 3.0}[one.arm] / images)
        )
        for one in plan(three_runs, tmp_path)  # six
    ]

    def shared(runs_per_job):
        return [[one.name for one in job] for job in slurm.share_out(runs, runs_per_job)]

    assert shared(None) == [["c/0"], ["c/1"], ["b/0", "b/1"], ["a/0", "a/1"]]
    assert shared(1) == [[name] for name in ("c/0", "c/1", "b/0", "b/1", "a/0", "a/1")]
    assert shared(4) == [["c/0", "c/1", "b/0", "b/1"], ["a/0", "a/1"]]
    monkeypatch.setattr(slurm, "MOST_JOBS", 2)
    assert [len(job) for job in slurm.share_out(runs, None)] == [3, 3]
    with pytest.raises(UserError, match="--runs_per_job 2 would make more than 2 jobs of 6 runs"):
        shared(2)
