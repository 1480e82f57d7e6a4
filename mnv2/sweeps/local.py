"""Executes the runs of a sweep on this machine: in this process, or in several workers."""

import os
from collections.abc import Callable, Sequence

import ml_collections

from mnv2.runtime.files import AnyPath
from mnv2.sweeps.checks import check_comparison
from mnv2.sweeps.division import divide
from mnv2.sweeps.lanes import Lanes
from mnv2.sweeps.plan import number_of_runs


def run_here(
    config: ml_collections.ConfigDict,
    workdir: AnyPath,
    only: Sequence[str] = (),
    *,
    parallel: int | None = None,
    threads: int | None = None,
    meet: Callable[[], None] | None = None,
    reports: bool = True,
    profile: AnyPath | None = None,
    lanes: Lanes | None = None,
) -> None:
    """Executes every run that is not finished, and writes the report.

    `parallel` is the number of runs at the same time, `threads` the number with which each computes
    on a CPU; None: chosen for this machine. `meet` joins this process to others, and `lanes` divide
    its devices among runs; both need `parallel` 1. Must be called before JAX starts. See
    `run_sweep` and `run_in_workers`, also for what is raised.
    """
    check_comparison(config)
    division = divide(number_of_runs(config), parallel, threads)
    if division.workers == 1:
        os.environ.update(division.environment(0))
        from mnv2.sweeps.execute import run_sweep

        if meet is not None:
            meet()
        run_sweep(config, workdir, only, reports=reports, profile=profile, lanes=lanes)
        return
    import jax

    from mnv2.sweeps.workers import run_in_workers

    if division.threads is not None:  # what is recorded for the sweep
        os.environ.update(division.environment(0))
    if division.gpus:
        jax.config.update("jax_platforms", "cpu")  # the GPUs are for the workers
    run_in_workers(config, workdir, only, division, reports=reports)
