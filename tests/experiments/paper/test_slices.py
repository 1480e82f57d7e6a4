import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.paper.slices import in_slices, inverted_residual_by_slices
from mnv2.models import fold_batch_norm
from mnv2.models.blocks import ConvBN, Conventions, InvertedResidual
from tests.variables import random_variables


class Block(nn.Module):
    """One block as a network, with the field that `fold_batch_norm` needs."""

    features: int
    stride: int
    expansion: float
    conventions: Conventions = Conventions()

    @nn.compact
    def __call__(self, x, train=False):
        conv_bn = functools.partial(ConvBN, conventions=self.conventions)
        return InvertedResidual(
            self.features, self.stride, expansion=self.expansion, conv_bn=conv_bn, name="block"
        )(x, train)[0]


BLOCKS = [
    (16, 1, 1, "same", (7, 5)),  # no expansion, as in the first block
    (8, 2, 6, "same", (8, 8)),
    (8, 2, 6, "same", (7, 5)),
    (16, 1, 6, "symmetric", (8, 8)),  # with a shortcut
    (16, 2, 6, "symmetric", (7, 5)),
]


@pytest.mark.parametrize(("features", "stride", "expansion", "padding", "size"), BLOCKS)
def test_any_number_of_slices_gives_the_same_result(features, stride, expansion, padding, size):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, *size, 16)), jnp.float32)
    whole = Block(features, stride, expansion, Conventions(padding))
    variables = fold_batch_norm(whole, random_variables(whole, 16))
    expected = whole.apply(variables, x)
    channels = 16 * expansion
    for splits in (3, 8, channels):
        with in_slices(splits):
            result = whole.apply(variables, x)
        error = np.abs(result - expected).max() / np.abs(expected).max()
        assert error < 1e-5, splits


def test_only_one_slice_of_the_expanded_tensor_exists_at_a_time():
    x = jax.ShapeDtypeStruct((1, 64, 64, 16), jnp.float32)
    whole = Block(16, 1, 6)
    variables = fold_batch_norm(whole, random_variables(whole, 16))
    params = variables["params"]["block"]

    def temporary(splits):
        by_slices = functools.partial(
            inverted_residual_by_slices, splits=splits, stride=1, padding=((1, 1), (1, 1))
        )
        return jax.jit(by_slices).lower(x, params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(6) < 0.5 * temporary(1)
