"""Two processes of two devices; whole runs are held against one by `make faults`."""

import os
import subprocess
import sys

import pytest

from mnv2.runtime import processes
from mnv2.runtime.errors import UserError
from tests.faults.processes import free_port, start

TALK = """
import functools, sys
from mnv2.runtime import processes
print = functools.partial(print, file=sys.stderr)  # gloo writes into the other one
processes.meet(sys.argv[1], 2, int(sys.argv[2]))
import jax, numpy as np
from mnv2.training.step import AXIS, StepMetrics, replicate, shard, summarize
from mnv2.runtime.interruption import Stopped, Stopper, BETWEEN_TALKS
which, count = processes.process_shard()
state = replicate({"scale": np.float32(10)})
rows = shard({"x": np.arange(8, dtype=np.float32)[4 * which : 4 * which + 4]})
total = jax.pmap(lambda s, b: jax.lax.psum(s["scale"] * b["x"].sum(), AXIS), AXIS,
                 in_axes=(None, 0), out_axes=None)
print("sum", summarize([StepMetrics(examples=total(state, rows))])["examples"])
print("first", processes.broadcast_from_primary(which == 0), "any", processes.any_of(which == 1),
      "none", processes.any_of(False), "writes", processes.is_writer())
stopper = Stopper(processes.any_of)
stopper.check()  # from here on it is known that checks follow each other at once
if which == 1:
    stopper._noted = "SIGTERM"
for check in range(1, 99):
    try:
        stopper.check()
    except Stopped as stopped:
        print("stopped by", stopped, "at check", check, check == BETWEEN_TALKS)
        break
"""


def test_two_processes_add_up_agree_and_stop_together():
    address = f"127.0.0.1:{free_port()}"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TALK, address, str(which)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for which in (0, 1)
    ]
    printed = [process.communicate() for process in both]
    reasons = ("a signal to another process", "SIGTERM")
    for which, (_, said) in enumerate(printed):
        assert "sum 280.0\n" in said
        assert f"first True any True none False writes {which == 0}\n" in said
        assert f"stopped by {reasons[which]} at check 10 True\n" in said


def test_bad_input_is_one_clear_line_in_each_process(tmp_path, fashion_mnist):
    both = start(tmp_path / "never", 2, 1, steps=4, more=["--config.batch_size=31"])
    for process in both:
        printed, _ = process.communicate()
        assert process.returncode == 2, printed
        errors = [line for line in printed.splitlines() if line.startswith("error: ")]
        assert errors == ["error: batch_size must be a multiple of the 2 devices, got 31"]
        assert "Traceback" not in printed
    assert not (tmp_path / "never").exists()


def test_a_single_process_asks_nobody():
    assert processes.any_of(True)
    assert not processes.broadcast_from_primary(False)
    assert processes.broadcast_from_primary(7) == 7
    with pytest.raises(UserError, match=r"^no luck$"), processes.ending_together():
        raise UserError("no luck")
