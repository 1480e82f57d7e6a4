import importlib.util
import sys

import pytest

from experiments.speed import chips
from experiments.speed.compilers import cost, instructions
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
    found = [(kernel.name, kernel.traffic) for kernel in cost.traffic(GPU_PROGRAM)]
    assert found == [("fusion.1", (64 + 16) + (64 + 16)), ("d", 8 + 64)]


def test_a_kernel_takes_the_larger_of_the_times_for_bytes_and_instructions():
    kernels = [
        cost.Kernel("a", "", 2e7, 3.0, 2.0),
        cost.Kernel("b", "", 1e6, 1.0, 4.0, narrow=8),
        cost.Kernel("c", "", 5e6, 1.0, None),
    ]
    of_all = cost.Cost(0, 0, kernels)
    assert of_all.seconds() == 3.0 + 4.0 + 1.0
    assert (of_all.small(), of_all.narrow(), of_all.not_counted()) == (2, 1e6, 5e6)


# A loop of five instructions whose counter goes to 0x30 in steps of 0x10, and three others.
SASS = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   CS2R R4, SRZ ;
.L_x_0:
        /*0020*/                   LDG.E.U16 R2, desc[UR4][R6.64] ;
        /*0030*/                   ISETP.NE.U32.AND P1, PT, R4, 0x20, P0 ;
        /*0040*/                   VIADD R4, R4.reuse, 0x10 ;
        /*0050*/                   ISETP.NE.U32.AND P0, PT, R4, 0x30, PT ;
        /*0060*/               @P0 BRA `(.L_x_0) ;
        /*0070*/                   EXIT ;
.L_x_1:
        /*0080*/                   BRA `(.L_x_1);
        /*0090*/                   NOP;
"""


def test_the_instructions_of_a_loop_count_as_often_as_it_runs():
    # The branch to itself behind the end is never reached; it counts once.
    assert instructions.read(SASS) == instructions.Code(2 + 3 * 5 + 1 + 1, 1, 0, 0)
    down = SASS.replace("VIADD R4, R4.reuse, 0x10", "UIADD3 UR5, UR5, -0x1, URZ").replace(
        "P0, PT, R4, 0x30, PT", "P0, PT, RZ, UR5, PT"
    )
    down = down.replace("CS2R R4, SRZ", "UMOV UR5, 0x7").replace("R4, 0x20", "R4, R9")
    assert instructions.read(down).instructions == 2 + 7 * 5 + 2
    assert instructions.read(SASS.replace("0x30", "R9")).instructions is None
    with pytest.raises(UserError, match="its text has changed"):
        instructions.read("")


def test_kernels_have_the_warps_of_their_launch(tmp_path):
    sequence = """
001: kCopy         [source       | next=090 (89) ] kCopy
002: kCustomKernel [prev=001 (1) | sink          ] gemm_1 grid: [3, 2, 1] threads: [48, 1, 1]  shared_memory: 0 bytes
"""  # noqa: E501
    metadata = 'thunk_info { profile_annotation: "%s"\n thunk_id: %d } '
    (tmp_path / "m.thunk_sequence.txt").write_text(sequence.lstrip())
    (tmp_path / "m.thunk_metadata.txt").write_text(metadata % ("c", 1) + metadata % ("gemm.1", 2))
    assert instructions.launches(tmp_path) == {"c": ("kCopy", 0), "gemm.1": ("gemm_1", 6 * 2)}
    (tmp_path / "m.thunk_sequence.txt").write_text("something else")
    with pytest.raises(UserError, match="list of kernels has changed"):
        instructions.launches(tmp_path)
    with pytest.raises(UserError, match="XLA wrote no PTX"):
        instructions.sources(tmp_path)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["chips", *map(str, arguments)])
    chips.main()


def fake_cost(task, framework, chip):
    half = 1 if framework == "mnv2" else 2
    tpu = CHIPS[chip].platform == "tpu"
    kernels = [] if tpu else [cost.Kernel("k", "", 1e8, 3e-5, 4e-5)] * 100 * half
    return cost.Cost(5e9, half * 1.5e8 * tpu, kernels)


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
        f"{title} 10.00 | 20.00 | 0.50 | 100 | 200 | 5.0 | 3.00 | 4.00 | 64,000 |"
    )
    assert "| all | 100 | 0 | 10.00 | 3.00 | 4.00 |" in (tmp_path / "kinds_H100.md").read_text()


def test_a_step_that_does_not_compile_is_left_out_with_a_warning(monkeypatch, tmp_path, capsys):
    def failing(task, framework, chip):
        raise UserError(f"{task} is left out: {framework} does not compile for {chip}: too large")

    monkeypatch.setattr(chips, "check_installed", lambda chip: None)
    monkeypatch.setattr(chips, "cost_of", failing)
    with pytest.raises(UserError, match="no step could be compiled"):
        run(monkeypatch, "--networks", "v2", "--out", tmp_path)
    assert "v2 is left out: mnv2 does not compile" in capsys.readouterr().err


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


def test_a_small_step_for_a_gpu_has_no_matrix_product_that_loads_two_bytes_at_a_time():
    pytest.importorskip("jax_plugins.xla_cuda13")
    read = chips.cost_of("ablation", "mnv2", "H100")
    assert read.seconds() > 1e-4
    assert not [one.name for one in read.kernels if one.name.startswith("gemm") and one.narrow > 7]
    assert not any(one.spilled for one in read.kernels if "depthwise" in one.layer)
