import importlib.util
import sys

import pytest

from experiments.speed import chips
from experiments.speed.compilers import cost
from experiments.speed.compilers.chips import CHIPS, check_installed
from mnv2.runtime.errors import UserError

TPU_PROGRAM = """
ENTRY %main {
  %f.1 = bf16[8,4] fusion(%a), {op_name="jvp(V2)/b/depthwise/conv"}, {"estimated_cycles":"100"}
  %f.2 = bf16[8] fusion(%a), {op_name="transpose(jvp(V2))/expand/conv"}, {"estimated_cycles":"20"}
  %copy = bf16[8,4]{1,0} copy(%a)
}
"""
GPU_PROGRAM = """
%fused { %x = f32[1000]{0} parameter(0) }
ENTRY %main {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %fusion.1 = (bf16[8,4]{1,0}, f32[4]{0}) fusion(%a, %b), kind=kLoop, metadata={op_name="jit(step)/jvp(V2)/stem/conv"}
  %c = bf16[8,4]{1,0} get-tuple-element(%fusion.1), index=0
  ROOT %d = pred[8]{0} custom-call(%c), custom_call_target="x"
}
"""  # noqa: E501


def test_the_cycles_of_a_tpu_program_are_found():
    assert cost.cycles(TPU_PROGRAM) == [100, 20]


def test_the_traffic_of_a_gpu_program_is_what_its_kernels_read_and_write():
    # bf16[8,4] has 64 bytes and f32[4] has 16. Parameters and elements of tuples move nothing.
    assert list(cost.traffic(GPU_PROGRAM)) == [(64 + 16) + (64 + 16), 8 + 64]


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["chips", *map(str, arguments)])
    chips.main()


def fake_cost(task, framework, chip):
    half = 1 if framework == "mnv2" else 2
    tpu = CHIPS[chip].platform == "tpu"
    return cost.Cost(5e9, half * 1e10, half * 1.5e8 * tpu, 0 if tpu else 100 * half)


def test_the_tables_compare_with_plain_flax(monkeypatch, tmp_path):
    monkeypatch.setattr(chips, "check_installed", lambda chip: None)
    monkeypatch.setattr(chips, "cost_of", fake_cost)
    run(monkeypatch, "--chips", "v5e", "H100", "--networks", "v2", "--out", tmp_path)
    title = "| V2 1.0, 224 px, batch 256 |"
    # 150 million cycles at 1.5 GHz are a tenth of a second.
    assert (tmp_path / "chips_v5e.md").read_text().splitlines()[2] == (
        f"{title} 150.00 | 300.00 | 0.50 | 5.0 | 2,560 |"
    )
    assert (tmp_path / "chips_H100.md").read_text().splitlines()[2] == (
        f"{title} 10.00 | 20.00 | 0.50 | 100 | 200 | 5.0 | 85,811 |"
    )


def test_a_step_that_does_not_compile_is_left_out_with_a_warning(monkeypatch, tmp_path, capsys):
    def failing(task, framework, chip):
        raise UserError(f"{framework} does not compile for {chip}: too large")

    monkeypatch.setattr(chips, "check_installed", lambda chip: None)
    monkeypatch.setattr(chips, "cost_of", failing)
    with pytest.raises(UserError, match="no step could be compiled"):
        run(monkeypatch, "--networks", "v2", "--out", tmp_path)
    assert "V2 1.0, 224 px, batch 256 is left out: mnv2 does not" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--chips", "v5"), "unknown chip 'v5': did you mean 'v5"),
        (("--networks", "v3"), "unknown network 'v3'"),
    ],
)
def test_impossible_arguments_are_rejected(monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(chips, "check_installed", lambda chip: None)
    with pytest.raises(UserError, match=message):
        run(monkeypatch, *arguments, "--out", tmp_path)


def test_a_compiler_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu.: make tpu installs it"):
        check_installed(CHIPS["v5e"])


def test_a_small_step_compiles_for_a_tpu():
    pytest.importorskip("libtpu")
    read = chips.cost_of("ablation", "mnv2", "v5e")
    assert read.cycles > 1e5
    assert read.memory > 1e6
