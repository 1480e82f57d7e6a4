import pytest

from mnv2.analysis import memory
from mnv2.models import create_model
from mnv2.runtime.errors import UserError

V2 = create_model("mobilenet_v2")


def test_the_blocks_of_the_paper_have_the_tensors_of_table_2():
    first, second, *_, last = memory.block_sizes(V2, (224, 224))
    assert (first.inputs, first.outputs, first.channels) == (112**2 * 32, 112**2 * 16, 32)
    assert (second.inputs, second.outputs, second.channels) == (112**2 * 16, 56**2 * 24, 96)
    assert (last.inputs, last.outputs, last.channels) == (49 * 160, 49 * 320, 960)


def test_equation_2_by_hand():
    first, second, *_ = memory.block_sizes(V2, (224, 224))
    # In 16 bits: input and output of the first block are the 1,204,224 bytes of its own equation.
    assert 2 * (first.inputs + first.outputs) == 1_204_224
    assert first.held(32) == first.inputs + first.outputs + 112**2  # a slice of it is no copy
    assert second.held(1) == second.inputs + second.outputs + 96 * (112**2 + 56**2)
    assert second.held(96) == second.inputs + second.outputs + 112**2 + 56**2
    assert second.held(5) == second.inputs + second.outputs + 20 * (112**2 + 56**2)


def test_the_fewest_splits_within_a_budget_are_chosen():
    budget = 4_000_000
    splits = memory.splits_within(V2, (224, 224), budget)
    sizes = memory.block_sizes(V2, (224, 224))
    assert max(splits) > 1
    for size, t in zip(sizes, splits, strict=True):
        assert 4 * size.held(t) <= budget
        assert t == 1 or 4 * size.held(t - 1) > budget


def test_a_budget_that_is_too_small_is_refused_with_what_is_needed():
    with pytest.raises(UserError, match="block_0 holds 2,458,624"):
        memory.splits_within(V2, (224, 224), 1_000_000)
