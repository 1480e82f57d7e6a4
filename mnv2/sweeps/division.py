"""How the cores and GPUs of this machine are divided among the runs of a sweep."""

import os
from typing import NamedTuple

from mnv2.runtime import machine

# The part of a GPU's memory that JAX takes by default; several workers on one GPU share it.
GPU_MEMORY = 0.75
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"


class Division(NamedTuple):
    """How many worker processes execute runs at the same time, and what each of them may use.

    workers  1 if the runs are executed in this process
    threads  with which each computes on the CPU; None: XLA chooses, for accelerators
    gpus     names of GPUs; each worker has some of them
    chosen   the user chose the number of workers
    reason   why there are so many, for people
    """

    workers: int
    threads: int | None
    gpus: tuple[str, ...] = ()
    chosen: bool = False
    reason: str = ""

    @property
    def measures_memory(self) -> bool:
        """Tells whether only so many workers may work as the memory has room for."""
        return not self.chosen and not self.gpus

    def environment(self, worker: int) -> dict[str, str]:
        """Returns the environment variables of one worker."""
        variables = {machine.WORKERS: str(self.workers)} if self.workers > 1 else {}
        if self.threads is not None:
            variables[machine.THREADS] = str(self.threads)
        if self.gpus:
            ours = self.gpus[worker % len(self.gpus) :: self.workers]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(ours)
            sharing = -(-self.workers // len(self.gpus))
            if sharing > 1 and FRACTION not in os.environ:
                variables[FRACTION] = f"{GPU_MEMORY / sharing:.3f}"
        return variables


def divide(runs: int, parallel: int | None = None, threads: int | None = None) -> Division:
    """Divides this machine among the runs of a sweep, all of them, with the finished ones.

    So a run's number of threads, on which the last digits of its result depend, does not change
    when the sweep is resumed. `parallel` and `threads` are what the user chose, if anything.

    On CPUs there is a worker per core: a training step with two threads is only 1.4 times as fast
    as with one. On NVIDIA GPUs there is one per GPU. On TPUs one process uses all chips.
    """
    platform, cores = machine.platform(), machine.cores()
    chosen = parallel is not None
    if platform == "cuda":
        gpus = tuple(machine.gpus())
        workers = parallel or max(1, min(len(gpus), runs))
        return Division(workers, threads, gpus if workers > 1 else (), chosen, f"{len(gpus)} GPUs")
    if platform != "cpu":
        return Division(parallel or 1, threads, chosen=chosen, reason=f"on {platform}")
    if threads is None:
        threads = max(1, cores // (parallel or min(cores, runs)))
    workers = parallel or max(1, min(cores // threads, runs))
    each = f"{threads} thread{'s' * (threads > 1)} each, of {cores} core{'s' * (cores > 1)}"
    return Division(workers, threads, chosen=chosen, reason=each)
