"""Runs commands as a user would, in processes that have imported the libraries already."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from mnv2.sweeps import launch

SERVER = multiprocessing.get_context("forkserver")
# With JAX and TensorFlow, which take 5 s.
SERVER.set_forkserver_preload(["mnv2.sweeps.run"])


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module` with arguments; returns its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("stdout", "stderr")]
        process = SERVER.Process(target=_run, args=(module, arguments, paths))
        process.start()
        process.join()
        assert process.exitcode is not None
        printed = [path.read_text() for path in paths]
        return subprocess.CompletedProcess((module, *arguments), process.exitcode, *printed)


def _run(module: str, arguments: tuple[str, ...], paths: list[Path]) -> None:
    for stream, path in enumerate(paths, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    sys.argv = [module, *arguments]
    if module == "mnv2.main":  # the first copy, which does the work: see `sweeps.launch`
        folder = paths[0].parent
        workdirs = [word.partition("=")[2] for word in arguments if word.startswith("--workdir=")]
        (folder / "workdir").write_text("".join(workdirs))
        os.environ.update({launch.COPY: "0", launch.LAUNCH: str(folder)})
    runpy.run_module(module, run_name="__main__", alter_sys=True)
