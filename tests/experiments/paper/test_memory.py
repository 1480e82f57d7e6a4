from types import SimpleNamespace

import numpy as np

from experiments.common.networks import Submodule
from experiments.paper.memory import equation_2


def block(side, inputs, channels, outputs, stride):
    params = {
        "depthwise": {"kernel": np.zeros((3, 3, 1, channels))},
        "project": {"kernel": np.zeros((1, 1, channels, outputs))},
    }
    if channels != inputs:
        params["expand"] = {}
    return Submodule(SimpleNamespace(stride=stride), params, (1, side, side, inputs))


def test_the_memory_of_a_block_follows_equation_2():
    first = block(112, 32, 32, 16, stride=1)
    # It does not expand, so its slice before the depthwise convolution is no copy.
    assert equation_2(first, 32) == 4 * 112**2 * (32 + 16 + 1)
    second = block(112, 16, 96, 24, stride=2)
    outside = 112**2 * 16 + 56**2 * 24
    assert equation_2(second, 1) == 4 * (outside + 96 * (112**2 + 56**2))
    assert equation_2(second, 96) == 4 * (outside + 112**2 + 56**2)
    assert equation_2(second, 5) == 4 * (outside + 20 * (112**2 + 56**2))
