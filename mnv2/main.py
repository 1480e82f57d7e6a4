"""Trains the arms of a config and reports on them.

    python -m mnv2.main --config configs/v2_ablation.py       the ablations, on a laptop
    python -m mnv2.main --config configs/v2_ablation.py:full  as one would publish them
    python -m mnv2.main --config configs/v2_ablation.py --only linear,relu6
    python -m mnv2.main --config configs/v2_ablation.py --config.model.width 0.5 --workdir runs/w50

Any field of the config can be set on the command line. The same command again goes on where it
stopped and skips what is finished. Results: python -m mnv2.report WORKDIR, and
tensorboard --logdir WORKDIR.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from mnv2.allocator import restart_with_huge_pages
from mnv2.commands import fail, run

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, with a preset after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs and the report (default: runs/NAME-PRESET)."
)
_ONLY = flags.DEFINE_list("only", [], "Arms to run, separated by commas (default: all).")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}: see --help")
    if _CONFIG.value is None:
        fail("no --config given: try --config configs/v2_ablation.py, or --help")
    from mnv2 import sweep  # imports JAX and TensorFlow, which --help need not wait for

    workdir = Path(
        _WORKDIR.value or _default_workdir(config_flags.get_config_filename(flags.FLAGS["config"]))
    )
    run(lambda: sweep.run(_CONFIG.value, workdir, _ONLY.value))


def _default_workdir(config_file: str) -> Path:
    """configs/v2_ablation.py:full -> runs/v2_ablation-full"""
    path, _, preset = config_file.partition(":")
    return Path("runs") / "-".join(filter(None, (Path(path).stem, preset)))


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        getattr(_CONFIG.value, "arms", None)  # a config that failed to load says so when it is used
        return rest
    except (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        fail(_explain(error))


def _explain(error: Exception) -> str:
    """What was wrong with the flags, without the traceback that ml_collections puts around it."""
    text = str(error)
    if match := re.search(r'Did you mean "(\S+)" instead of "(\S+)"', text):
        return f"unknown config field {match[2]!r}: did you mean {match[1]!r}?"
    if match := re.search(r"No such file or directory: '(.+)'", text):
        return f"no config file {match[1]}: try configs/v2_ablation.py"
    if "Traceback" in text:
        return text.strip().splitlines()[-1].partition(": ")[2]
    return text


if __name__ == "__main__":
    restart_with_huge_pages("mnv2.main")
    app.run(main, argv=sys.argv, flags_parser=_parse)
