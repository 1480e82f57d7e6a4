import signal
import sys

import pytest
import submitit

from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import Stopped
from mnv2.sweeps import slurm


def test_what_slurm_is_asked_for_is_what_was_given():
    wanted = slurm.Resources("gpu", cores=3, gpus=1, hours=1.5, parallel=2)
    script = submitit.slurm.slurm._make_sbatch_string(
        command="x", folder="logs", map_count=4, **slurm._parameters(wanted, jobs=4)
    )
    for line in ("partition=gpu", "cpus-per-task=3", "gpus-per-node=1", "time=90", "array=0-3%2"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script
    without = slurm._parameters(slurm.Resources(None, cores=1, gpus=0, hours=1), jobs=7)
    assert not {"partition", "gpus_per_node"} & set(without)
    assert without["array_parallelism"] == 7


def test_without_slurm_it_says_so(three_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    wanted = slurm.Resources(None, cores=1, gpus=0, hours=1)
    with pytest.raises(UserError, match=r'SLURM takes no jobs here: .*"srun"'):
        slurm.submit(three_runs, tmp_path, (), wanted)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r'pip install "\.\[slurm\]" in a checkout'):
        slurm.submit(three_runs, tmp_path, (), wanted)


def test_a_job_stops_by_itself_before_its_time_limit(three_runs, tmp_path, monkeypatch):
    """Is queued again, and waits for SLURM to end it."""
    happened = []
    monkeypatch.setattr(slurm, "run_here", lambda *_, **__: signal.raise_signal(signal.SIGALRM))
    monkeypatch.setattr(slurm.signal, "alarm", lambda seconds: happened.append(seconds))
    monkeypatch.setattr(slurm.signal, "pause", lambda: happened.append("waits"))
    monkeypatch.setattr(slurm.subprocess, "run", lambda args, **_: happened.append(args))
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    handlers = {n: signal.getsignal(n) for n in (signal.SIGALRM, signal.SIGUSR2, signal.SIGTERM)}

    def stopped(*_):
        raise Stopped("SIGTERM")

    try:
        signal.signal(signal.SIGTERM, stopped)  # as within a run
        wanted = slurm.Resources(None, cores=1, gpus=0, hours=1 / 6)
        slurm._Job(three_runs, tmp_path, ["a/0"], ["a/0"], wanted)()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert happened == [510, ["scontrol", "requeue", "7_1"], "waits"]
