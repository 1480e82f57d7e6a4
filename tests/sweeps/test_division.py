import os

import pytest

from mnv2.runtime import machine
from mnv2.runtime.errors import UserError
from mnv2.sweeps.division import divide


@pytest.fixture
def on(monkeypatch):
    """Pretends that this machine has so many cores, and GPUs with these names."""

    def pretend(cores, gpus=(), platform="cpu", chips=()):
        monkeypatch.setattr(machine, "cores", lambda: cores)
        monkeypatch.setattr(machine, "gpus", lambda: list(gpus))
        monkeypatch.setattr(machine, "chips", lambda: list(chips))
        monkeypatch.setattr(machine, "platform", lambda: "cuda" if gpus else platform)

    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    return pretend


@pytest.mark.parametrize(
    ("cores", "runs", "parallel", "threads", "expected"),
    [
        (2, 26, None, None, (2, 1)),  # a copy per core
        (8, 26, None, None, (8, 1)),
        (1, 26, None, None, (1, 1)),
        (8, 1, None, None, (1, 8)),  # a single run gets all cores
        (8, 2, None, None, (2, 4)),
        (8, 5, None, None, (5, 1)),  # all runs get equally many
        (8, 26, None, 2, (4, 2)),
        (8, 26, None, 16, (1, 16)),
        (8, 26, 1, None, (1, 8)),
        (8, 26, 3, None, (3, 2)),
        (2, 26, 5, None, (5, 1)),
        (8, 26, 3, 1, (3, 1)),
    ],
)
def test_cores_are_divided_evenly(on, cores, runs, parallel, threads, expected):
    on(cores)
    division = divide(runs, parallel, threads)
    assert (division.copies, division.threads) == expected
    environment = division.environment(0)
    assert environment["NPROC"] == str(expected[1])
    assert environment.get("MNV2_WORKERS", "1") == str(expected[0])


def test_a_division_says_what_there_is_and_how_many_runs_share_it(on):
    on(2)
    assert str(divide(26)) == "2 cores, 2 runs at once, 1 thread each"
    assert str(divide(1)) == "2 cores, one run after another, 2 threads each"
    on(16, gpus=["0", "1"])
    assert str(divide(26)) == "2 GPUs, 2 runs at once"


def test_each_copy_gets_as_many_gpus_of_its_own(on):
    on(16, gpus=["0", "1", "2", "3"])
    assert divide(26).copies == 4
    variables = [divide(26).environment(copy) for copy in range(4)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in variables] == ["0", "1", "2", "3"]
    assert not any("XLA_PYTHON_CLIENT_MEM_FRACTION" in one for one in variables)
    halves = [divide(26, 2).environment(copy) for copy in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in halves] == ["0,1", "2,3"]


def test_a_single_run_gets_all_gpus(on):
    on(16, gpus=["0", "1"])
    assert divide(1).copies == 1
    assert divide(1).environment(0) == {}


def test_copies_that_share_a_gpu_share_its_memory(on, monkeypatch):
    on(16, gpus=["5", "7"])
    first, third = (divide(26, 4).environment(copy) for copy in (0, 2))
    assert first == third
    assert first["CUDA_VISIBLE_DEVICES"] == "5"
    assert first["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.375"
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.2")  # the user knows better
    assert divide(26, 4).environment(1) == {"CUDA_VISIBLE_DEVICES": "7", "MNV2_WORKERS": "4"}


def test_every_run_of_a_sweep_has_the_same_number_of_gpus(on):
    on(16, gpus=[str(number) for number in range(8)])
    three = divide(3)
    assert three.devices == (("0", "1"), ("2", "3"), ("4", "5"))
    assert three.reason == "8 GPUs, 2 of which stay idle: each run has as many"
    assert {len(divide(runs).devices[0]) for runs in range(5, 30)} == {1}


def test_copies_share_the_chips_of_a_tpu(on):
    on(96, platform="tpu", chips=["0", "1", "2", "3"])
    assert divide(1).environment(0) == {}  # all of them
    halves = divide(26, 2)
    assert halves.environment(1) == {
        "MNV2_WORKERS": "2",
        "TPU_VISIBLE_CHIPS": "2,3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    assert divide(26).copies == 4
    with pytest.raises(UserError, match="--parallel must be at most the 4 chips"):
        divide(26, 5)


def test_there_are_only_as_many_copies_as_have_room(on, monkeypatch):
    on(8)
    monkeypatch.setattr(machine, "free_memory", lambda: 9 * 2**30)
    assert divide(26).within_memory(2**30).copies == 3  # 3 GiB each
    said = divide(26).within_memory(2**30).reason
    assert said == (
        "memory has room for 3 of 8 runs at once, which take up to 3.0 GiB each: --parallel 8 "
        "starts all"
    )
    assert divide(26, 8).within_memory(2**30).copies == 8  # the user knows better
    assert divide(26).within_memory(2**40).copies == 1
    assert divide(26).within_memory(0) == divide(26)._replace(copies=4, reason=divide(
        26).within_memory(0).reason)  # fmt: skip


def test_a_container_has_the_cores_and_the_memory_that_it_was_given(tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert machine.cores(tmp_path, tmp_path / "none") == 64
    for quota, cores in (("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2)):
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
        assert machine.cores(tmp_path, tmp_path / "none") == cores
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")
    assert machine.cores(tmp_path, tmp_path / "none") == 1
    everything = machine.free_memory(tmp_path, tmp_path / "none")
    assert everything > 2**20
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("2500\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 400\n")
    assert machine.free_memory(tmp_path, tmp_path / "none") == 900


@pytest.mark.parametrize("version", [1, 2])
def test_the_smallest_limit_of_the_control_groups_around_a_process_counts(
    tmp_path, monkeypatch, version
):
    """As of systemd-run and of SLURM, whose jobs have groups within that of the container."""
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    own = tmp_path / "own"
    own.write_text({1: "4:memory:/a/b/c\n3:cpu,cpuacct:/a/b\n0::/\n", 2: "0::/a/b/c\n"}[version])
    cpu, memory = (tmp_path / of if version == 1 else tmp_path for of in ("cpu", "memory"))
    for folder in (cpu / "a/b/c", memory / "a/b/c"):
        folder.mkdir(parents=True, exist_ok=True)
    if version == 1:
        (cpu / "a/cpu.cfs_quota_us").write_text("300000\n")
        (cpu / "a/cpu.cfs_period_us").write_text("100000\n")
        limit, used, stat = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    else:
        (tmp_path / "a/cpu.max").write_text("300000 100000\n")
        (tmp_path / "a/b/c/cpu.max").write_text("max 100000\n")
        limit, used, stat = "memory.max", "memory.current", "inactive_file"
    for group, bytes_ in (("a", 9000), ("a/b", 3000), ("a/b/c", 5000)):
        (memory / group / limit).write_text(f"{bytes_}\n")
        (memory / group / used).write_text("1000\n")
        (memory / group / "memory.stat").write_text(f"{stat} 100\n")
    assert machine.cores(tmp_path, own) == 3
    assert machine.free_memory(tmp_path, own) == 2100


def test_gpus_have_the_numbers_that_cuda_gives_them(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DEV", tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == []
    for name in ("nvidia3", "nvidia7", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert machine.gpus() == ["0", "1"]  # of a container that has two of eight
    for visible, names in (
        ("2, 5", ["2", "5"]),
        ("GPU-1a", ["GPU-1a"]),
        ("", []),
        ("1,-1,2", ["1"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert machine.gpus() == names


def test_the_platform_is_known_before_jax_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "DEV", tmp_path)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(machine, "_has", lambda *modules: False)
    assert machine.platform() == "cpu"  # JAX is installed without support for it
    monkeypatch.setattr(machine, "_has", lambda *modules: "jax_cuda13_plugin" in modules)
    assert machine.platform() == "cuda"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert machine.platform() == "cpu"
    monkeypatch.setenv("JAX_PLATFORMS", "tpu,cpu")
    assert machine.platform() == "tpu"
