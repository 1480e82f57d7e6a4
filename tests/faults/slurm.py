"""A SLURM of one node, and a sweep through it: python -m tests.faults.slurm

Starts munge and SLURM on the loopback interface, in a temporary folder, with two partitions of
which one takes machines away from the other. Submits a sweep of two arms to the lower one, and
while it trains a job to the upper one: the runs that are preempted must be queued again, and both
must finish with what they would have had undisturbed. Then one arm again, with a time limit that it
does not keep: it must save, be queued again and finish. Stops it all.

Needs root and Debian's packages slurm-wlm and munge, which it installs where they are missing;
where that is not possible it says why, and ends with exit code 0.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mnv2.runtime.cli import command_parser, run
from mnv2.runtime.errors import UserError
from tests.faults.kills import check_equal, final_state

ARMS = ("linear", "relu6")
STEPS = 2500
COMMAND = (
    *(sys.executable, "-m", "mnv2.main", "--config=configs/v2_ablation.py:quick"),
    f"--only={','.join(f'{arm}/0' for arm in ARMS)}",
    "--config.model.width=0.1",
    "--config.data.augmentation=crop_flip",
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
# A job is queued again when its credential has expired: after 10 s above, 120 usually.
PATIENCE = 600  # seconds


def install() -> str | None:
    """Installs SLURM where it is missing; returns why it cannot run here, if so."""
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    running = subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, check=False)
    if running.returncode == 0:
        return "a SLURM is running on this machine already"
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
    """SLURM, and munge for it, on loopback; stopped at the end."""
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
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(condition, what: str) -> None:
    """Looks again and again. Raises UserError when patience is at its end."""
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise UserError(f"no {what} after {PATIENCE} s: {output('squeue', '--long')}")
        time.sleep(0.5)


def sweep(workdir: Path, *arguments: str) -> None:
    subprocess.run([*COMMAND, f"--workdir={workdir}", *arguments], check=True)


def states(workdir: Path) -> str:
    return output(sys.executable, "-m", "mnv2.status", str(workdir))


def preempt(workdir: Path) -> None:
    """A job that takes the whole node, as soon as both arms have a checkpoint."""
    wait_for(
        lambda: all(list(workdir.glob(f"{arm}/0/checkpoints/[0-9]*")) for arm in ARMS),
        "checkpoint of both arms",
    )
    print(f"\nboth train:\n{output('squeue')}{states(workdir)}", flush=True)
    subprocess.run(
        ["srun", "--partition=high", "--exclusive", "--job-name=urgent", "sh", "-c",
         "squeue; sleep 5"],
        check=True,
    )  # fmt: skip
    print(f"\nafter the urgent job:\n{output('squeue')}{states(workdir)}", flush=True)


def restarts(folder: Path) -> int:
    """How often jobs were queued again, by what they wrote."""
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
        print("undisturbed, without SLURM:", flush=True)
        sweep(folder / "undisturbed", "--noreport")
        with cluster(folder):
            print(f"\nthe cluster:\n{output('sinfo')}", flush=True)
            workdir = folder / "sweep"
            sweep(workdir, "--launcher=slurm", "--partition=low", "--cores=1", "--hours=1")
            preempt(workdir)
            wait_for(lambda: (workdir / "report.md").exists(), "finished sweep")
            print(f"\nat the end:\n{states(workdir)}{(workdir / 'report.md').read_text()}")
            for arm in ARMS:
                expected = final_state(folder / "undisturbed", f"{arm}/0")
                check_equal(final_state(workdir, f"{arm}/0"), expected, workdir)
            times = restarts(workdir / "slurm")
            if not times:
                raise UserError("no job was queued again")
            print(f"{times} jobs were preempted, queued again and finished exactly as undisturbed")
            exceed_the_limit(folder / "limited", folder / "undisturbed")


def exceed_the_limit(workdir: Path, undisturbed: Path) -> None:
    """A run of two minutes at most, 90 s of which its job keeps for saving."""
    sweep(workdir, "--launcher=slurm", "--cores=1", "--hours=0.033", f"--only={ARMS[0]}/0")
    wait_for(lambda: (workdir / "report.md").exists(), "run that was queued again")
    check_equal(
        final_state(workdir, f"{ARMS[0]}/0"), final_state(undisturbed, f"{ARMS[0]}/0"), workdir
    )
    times = restarts(workdir / "slurm")
    if not times:
        raise UserError("the time limit was not reached: give the run more steps")
    print(f"at its time limit a job was queued again {times} times and finished as undisturbed")


if __name__ == "__main__":
    run(main)
