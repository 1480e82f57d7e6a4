"""MobileNetV2 and its ablations in JAX and Flax."""

from typing import Any

__version__ = "0.2.0"


def train(config: Any, workdir: Any, *only: str, reports: bool = True) -> None:
    """Executes the runs of a config that are not finished in this process, as in a notebook.

    One run after another, in `workdir`; `only` names arms, or runs as arm/seed. Raises UserError if
    the config describes no runs, and RunsFailed at the end if any of them failed.
    """
    from mnv2.runtime.cli import silence_libraries
    from mnv2.runtime.files import as_path

    silence_libraries()
    from mnv2.sweeps.run import train_here  # imports JAX and TensorFlow

    train_here(config, as_path(workdir), only, reports=reports)
