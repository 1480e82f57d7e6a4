"""Two processes of two devices; whole runs are held against one by `make faults`."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from mnv2.runtime import processes
from mnv2.runtime.errors import UserError
from mnv2.runtime.interruption import BETWEEN_TALKS, Stopped, Stopper
from mnv2.training.step import AXIS, StepMetrics, replicate, shard, summarize
from tests import commands
from tests.faults.processes import free_port


def talk(address, which, path):
    """Joins another process with two devices; writes what both agree on."""
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    with path.open("w") as file:
        say = functools.partial(print, file=file, flush=True)
        processes.meet(address, 2, which)
        assert processes.process_shard() == (which, 2)
        state = replicate({"scale": np.float32(10)})
        rows = shard({"x": np.arange(8, dtype=np.float32)[4 * which : 4 * which + 4]})
        add = jax.pmap(
            lambda s, b: jax.lax.psum(s["scale"] * b["x"].sum(), AXIS),
            AXIS, in_axes=(None, 0), out_axes=None,
        )  # fmt: skip
        say("sum", summarize([StepMetrics(examples=add(state, rows))])["examples"])
        say("first", processes.broadcast_from_primary(which == 0))
        say("any", processes.any_of(which == 1), processes.any_of(False))
        say("writes", processes.is_writer())
        stopper = Stopper(processes.any_of)
        stopper.check()  # from here on it is known that checks follow each other at once
        if which == 1:
            stopper._noted = "SIGTERM"
        for check in range(1, 99):
            try:
                stopper.check()
            except Stopped as stopped:
                say(stopped, "at check", check, check == BETWEEN_TALKS)
                break
        jax.distributed.shutdown()


def test_two_processes_add_up_agree_and_stop_together(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    paths = [tmp_path / "0", tmp_path / "1"]
    both = [
        commands.SERVER.Process(target=talk, args=(address, which, path))
        for which, path in enumerate(paths)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    for which, reason in enumerate(("a signal to another process", "SIGTERM")):
        assert paths[which].read_text().splitlines() == [
            "sum 280.0", "first True", "any True False", f"writes {which == 0}",
            f"{reason} at check 10 True",
        ]  # fmt: skip


def test_bad_input_is_one_clear_line_in_each_process(tmp_path, fashion_mnist):
    address, workdir = f"127.0.0.1:{free_port()}", tmp_path / "never"

    def run(which):
        return commands.run(
            "mnv2.main", "--config=configs/v2_ablation.py:quick", "--config.batch_size=31",
            f"--workdir={workdir}", f"--coordinator_address={address}", "--num_processes=2",
            f"--process_id={which}",
        )  # fmt: skip

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(run, range(2)))
    devices = 2 * jax.local_device_count()
    for done in both:
        assert done.returncode == 2, done.stderr
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert errors == [f"error: batch_size must be a multiple of the {devices} devices, got 31"]
        assert "Traceback" not in done.stderr
    assert not workdir.exists()


def test_a_single_process_asks_nobody():
    assert processes.any_of(True)
    assert not processes.broadcast_from_primary(False)
    assert processes.broadcast_from_primary(7) == 7
    with pytest.raises(UserError, match=r"^no luck$"), processes.ending_together():
        raise UserError("no luck")
