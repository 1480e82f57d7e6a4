"""How the cores, GPUs or chips of this machine are divided among the runs of a sweep."""

import os
from typing import NamedTuple

from mnv2.runtime import machine
from mnv2.runtime.errors import UserError

# The part of a GPU's memory that JAX takes by default; several copies on one GPU share it.
GPU_MEMORY = 0.75
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"
# What a copy on the CPU certainly does not exceed: bytes, and bytes per multiply-add of a batch in
# training. The ablation's widest network takes 3.6 GiB; by this it would take 4.0.
COPY_BYTES, BYTES_PER_MULTIPLY_ADD = 2 * 2**30, 1.0
# The chips that one process may have, and how they lie together.
CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


class Division(NamedTuple):
    """How many copies execute runs at the same time, and what each of them may use.

    threads  with which each computes on the CPU; None: XLA chooses, for accelerators
    devices  names of the GPUs or chips of each copy; () if it uses all
    is_fixed the user gave the number of copies
    reason   what there is for them, or why there are not more, for people
    """

    copies: int
    platform: str
    threads: int | None
    devices: tuple[tuple[str, ...], ...] = ()
    is_fixed: bool = False
    reason: str = ""

    def __str__(self) -> str:
        """Says what there is, and how many runs share it."""
        many = f"{self.copies} runs at once" if self.copies > 1 else "one run after another"
        threads = self.threads and f", {self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{self.reason}, {many}{threads or ''}"

    def environment(self, copy: int) -> dict[str, str]:
        """Returns the environment variables of one copy."""
        variables = {machine.WORKERS: str(self.copies)} if self.copies > 1 else {}
        if self.threads is not None:
            variables[machine.THREADS] = str(self.threads)
        if not self.devices:
            return variables
        names = ",".join(self.devices[copy])
        if self.platform == "tpu":
            bounds = CHIP_BOUNDS[len(self.devices[copy])]
            return {
                **variables,
                "TPU_VISIBLE_CHIPS": names,
                "TPU_CHIPS_PER_PROCESS_BOUNDS": bounds,
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }
        sharing = max(self.devices.count(names) for names in self.devices)
        if sharing > 1 and FRACTION not in os.environ:
            variables[FRACTION] = f"{GPU_MEMORY / sharing:.3f}"
        return {**variables, "CUDA_VISIBLE_DEVICES": names}

    def within_memory(self, multiply_adds: float) -> "Division":
        """Returns a division of as few copies as have room, unless the user chose their number.

        `multiply_adds` are those of the largest batch in training, forward only.
        """
        if self.is_fixed or self.devices or self.platform != "cpu":
            return self
        needed = COPY_BYTES + BYTES_PER_MULTIPLY_ADD * multiply_adds
        copies = max(1, min(self.copies, int(machine.free_memory() / needed)))
        if copies == self.copies:
            return self
        reason = (
            f"memory has room for {copies} of {self.copies} runs at once, which take up to "
            f"{needed / 2**30:.1f} GiB each: --parallel {self.copies} starts all"
        )
        return self._replace(copies=copies, reason=reason)


def divide(runs: int, parallel: int | None = None, threads: int | None = None) -> Division:
    """Divides this machine among the runs of a sweep, all of them, with the finished ones.

    So a run's number of threads and devices, on which the last digits of its result depend, does
    not change when the sweep is resumed. `parallel` and `threads` are what the user chose, if
    anything.

    On CPUs there is a copy per core: a training step with two threads is only 1.4 times as fast
    as with one. On accelerators there is one per GPU or chip, and each has as many as the others.
    """
    platform, cores = machine.platform(), machine.cores()
    is_fixed = parallel is not None
    if platform in ("cuda", "tpu"):
        names = tuple(machine.gpus() if platform == "cuda" else machine.chips())
        copies = parallel or max(1, min(len(names), runs))
        if platform == "tpu" and copies > max(1, len(names)):
            raise UserError(f"--parallel must be at most the {len(names)} chips, got {copies}")
        devices = _shares(names, copies, platform) if copies > 1 else ()
        what = "GPU" if platform == "cuda" else "chip"
        reason = f"{len(names)} {what}{'s' * (len(names) != 1)}"
        used = len({name for of_copy in devices for name in of_copy})
        if devices and used < len(names):
            reason += f", {len(names) - used} of which stay idle: each run has as many"
        return Division(copies, platform, threads, devices, is_fixed, reason)
    if platform != "cpu":
        return Division(parallel or 1, platform, threads, (), is_fixed, platform)
    if threads is None:
        threads = max(1, cores // (parallel or min(cores, runs)))
    copies = parallel or max(1, min(cores // threads, runs))
    return Division(copies, platform, threads, (), is_fixed, f"{cores} core{'s' * (cores > 1)}")


def _shares(names: tuple[str, ...], copies: int, platform: str) -> tuple[tuple[str, ...], ...]:
    """Deals devices to copies, as many to each; a device is shared if there are not enough."""
    each = max(1, len(names) // copies)
    if platform == "tpu":
        each = max(count for count in CHIP_BOUNDS if count <= each)
    return tuple(
        tuple(names[(copy * each + i) % len(names)] for i in range(each)) for copy in range(copies)
    )
