from experiments.common import block_sizes as memory
from mnv2.models import create_model

V2 = create_model("mobilenet_v2")


def test_the_blocks_have_the_tensor_sizes_of_table_2():
    first, second, *_, last = memory.block_sizes(V2, (224, 224))
    assert (first.inputs, first.outputs, first.channels) == (112**2 * 32, 112**2 * 16, 32)
    assert (second.inputs, second.outputs, second.channels) == (112**2 * 16, 56**2 * 24, 96)
    assert (last.inputs, last.outputs, last.channels) == (49 * 160, 49 * 320, 960)


def test_the_elements_held_follow_equation_2():
    first, second, *_ = memory.block_sizes(V2, (224, 224))
    # In 16 bits, the input and output of the first block have 2 * 112**2 * (32 + 16) bytes.
    assert 2 * (first.inputs + first.outputs) == 1_204_224
    # The first block does not expand, so its slice before the depthwise convolution is no copy.
    assert first.held(32) == first.inputs + first.outputs + 112**2
    assert second.held(1) == second.inputs + second.outputs + 96 * (112**2 + 56**2)
    assert second.held(96) == second.inputs + second.outputs + 112**2 + 56**2
    assert second.held(5) == second.inputs + second.outputs + 20 * (112**2 + 56**2)
