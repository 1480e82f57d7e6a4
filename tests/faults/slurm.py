"""Runs a sweep on a SLURM cluster of one node: python -m tests.faults.slurm

Starts munge and SLURM on the loopback interface, in a temporary folder, with two partitions; the
upper one may take machines away from the lower one. Submits a sweep of two arms to the lower
partition, and a job to the upper one while the sweep trains. The preempted runs must be queued
again, and both must finish with the result of undisturbed runs. Then one arm runs with a time limit
that is too short: it must save, be queued again and finish. Everything is stopped at the end.

Needs root and the Debian packages slurm-wlm and munge, and installs them if they are missing. If
that is not possible, it prints why and ends with exit code 0.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from tests.faults.kills import check_equal, final_state

ARMS = ("linear", "relu6")
STEPS = 2500
COMMAND = (
    "--config=configs/v2_ablation.py:quick",
    f"--only={','.join(f'{arm}/0' for arm in ARMS)}",
    "--config.model.width=0.1",
    "--config.data.train=pad_crop(4)|flip",
    "--config.data.validation=0",
    "--config.batch_size=16",
    f"--config.duration={STEPS} steps",
    "--config.checkpoint_every=100 steps",
    "--config.eval_every=0 steps",
)
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE State=UP
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF State=UP
"""
# A job is queued again when its credential has expired: here after 10 s, by default after 120 s.
PATIENCE = 600  # seconds


def install() -> str | None:
    """Installs SLURM if it is missing. Returns why it cannot run here, or None if it can."""
    if os.geteuid() != 0:
        return "starting the SLURM daemons needs root"
    running = subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, check=False)
    if running.returncode == 0:
        return "SLURM is already running on this machine"
    if shutil.which("slurmctld") and shutil.which("munged"):
        return None
    if not shutil.which("apt-get"):
        return "SLURM is not installed, and there is no apt-get"
    for arguments in (("update",), ("install", "--yes", "slurm-wlm", "munge")):
        done = subprocess.run(
            ["apt-get", "--quiet", *arguments], capture_output=True, text=True, check=False
        )
    return f"SLURM cannot be installed: {done.stderr.strip()[-200:]}" if done.returncode else None


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Runs SLURM and munge on the loopback interface, and stops them at the end."""
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir()
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder))
    os.environ["SLURM_CONF"] = str(config)
    subprocess.run(["install", "-d", "-o", "munge", "-g", "munge", "/run/munge"], check=True)
    munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--force"]
    started = subprocess.run(["pgrep", "-x", "munged"], capture_output=True, check=False)
    ours = started.returncode != 0
    if ours:
        subprocess.run(munge, check=True)
    try:
        subprocess.run(["slurmctld", "-c"], check=True)
        subprocess.run(["slurmd", "-c"], check=True)
        wait_for(lambda: "idle" in output("sinfo", "--noheader"), "an idle node")
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], check=False)
        time.sleep(2)
        for daemon in ("slurmd", "slurmctld"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                os.kill(int((folder / f"{daemon}.pid").read_text()), 15)
        if ours:
            subprocess.run(["pkill", "-x", "munged"], check=False)


def output(*command: str) -> str:
    """Runs a command, and returns its output."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits until `condition()` is true. Raises UserError after PATIENCE seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise UserError(f"no {what} after {PATIENCE} s: {output('squeue', '--long')}")
        time.sleep(0.5)


def sweep(workdir: Path, *arguments: str, module: str = "mnv2.submit") -> None:
    """Submits or runs the sweep, with further arguments."""
    command = [sys.executable, "-m", module, *COMMAND]
    subprocess.run([*command, f"--workdir={workdir}", *arguments], check=True)


def states(workdir: Path) -> str:
    """Returns the state of each run, as mnv2.status prints it."""
    return output(sys.executable, "-m", "mnv2.status", str(workdir))


def preempt(workdir: Path) -> None:
    """Submits a job that takes the whole node, as soon as both arms have a checkpoint."""
    wait_for(
        lambda: all(list(workdir.glob(f"{arm}/0/checkpoints/[0-9]*")) for arm in ARMS),
        "checkpoint of both arms",
    )
    print(f"\nboth runs train:\n{output('squeue')}{states(workdir)}", flush=True)
    subprocess.run(
        ["srun", "--partition=high", "--exclusive", "--job-name=urgent", "sh", "-c",
         "squeue; sleep 5"],
        check=True,
    )  # fmt: skip
    print(f"\nafter the urgent job:\n{output('squeue')}{states(workdir)}", flush=True)


def restarts(folder: Path) -> int:
    """Counts from the logs of the jobs how often a job was queued again."""
    return sum(
        path.read_text().count("Starting with JobEnvironment") - 1
        for path in folder.glob("*_log.out")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    command_parser("tests.faults.slurm", __doc__).parse_args(arguments)
    if reason := install():
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print("undisturbed runs, without SLURM:", flush=True)
        sweep(folder / "undisturbed", "--noreport", module="mnv2.main")
        with cluster(folder):
            print(f"\nthe cluster:\n{output('sinfo')}", flush=True)
            workdir = folder / "sweep"
            sweep(workdir, "--runs_per_job=1", "--partition=low", "--cores=1", "--hours=1")
            preempt(workdir)
            wait_for(lambda: (workdir / "report.md").exists(), "finished sweep")
            print(f"\nat the end:\n{states(workdir)}{(workdir / 'report.md').read_text()}")
            for arm in ARMS:
                expected = final_state(folder / "undisturbed", f"{arm}/0")
                check_equal(final_state(workdir, f"{arm}/0"), expected, workdir)
            times = restarts(workdir / "slurm")
            if not times:
                raise UserError("no job was queued again")
            print(
                f"{times} jobs were preempted, queued again and finished exactly as if undisturbed"
            )
            exceed_the_limit(folder / "limited", folder / "undisturbed")


def exceed_the_limit(workdir: Path, undisturbed: Path) -> None:
    """Runs one arm with a limit of two minutes, of which its job reserves 90 s for saving."""
    sweep(workdir, "--runs_per_job=1", "--cores=1", "--hours=0.033", f"--only={ARMS[0]}/0")
    wait_for(lambda: (workdir / "report.md").exists(), "run that was queued again")
    check_equal(
        final_state(workdir, f"{ARMS[0]}/0"), final_state(undisturbed, f"{ARMS[0]}/0"), workdir
    )
    times = restarts(workdir / "slurm")
    if not times:
        raise UserError("the time limit was not reached: give the run more steps")
    print(f"a job was queued again at its time limit {times} times and finished as if undisturbed")


if __name__ == "__main__":
    run(main)
