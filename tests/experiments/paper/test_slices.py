import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.paper.slices import in_slices, inverted_residual_by_slices
from mnv2.models import create_model, fold_batch_norm
from mnv2.models.blocks import ConvBN, Conventions, InvertedResidual
from mnv2.runtime.errors import UserError
from tests.deployment.networks import SHORT
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
            self.features,
            self.stride,
            expansion=self.expansion,
            conv_bn=conv_bn,
            name="block",
        )(x, train)[0]


BLOCKS = [
    (16, 1, 1, "same"),  # no expansion, as in the first block
    (8, 2, 6, "same"),
    (16, 1, 6, "symmetric"),  # with a shortcut
    (16, 2, 6, "symmetric"),
]


@pytest.mark.parametrize("size", [(8, 8), (7, 5)])
@pytest.mark.parametrize(("features", "stride", "expansion", "padding"), BLOCKS)
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


def test_the_whole_network_in_slices_gives_the_same_logits():
    images = jnp.asarray(np.random.default_rng(1).normal(size=(2, 37, 45, 3)), jnp.float32)
    model = create_model("mobilenet_v2", width=0.35, repeats=SHORT, num_classes=10)
    variables = random_variables(model)
    folded_variables = fold_batch_norm(model, variables)
    quick = {"xla_backend_optimization_level": 0}
    expected = jax.jit(model.apply, compiler_options=quick)(folded_variables, images)
    with in_slices(3):
        ours = jax.jit(lambda *x: model.apply(*x), compiler_options=quick)(folded_variables, images)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


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


def test_slices_are_refused_with_batch_norm():
    block = Block(16, 1, 6)
    variables = random_variables(block, 16)
    with in_slices(2), pytest.raises(UserError, match="folded batch norm"):
        block.apply(variables, jnp.zeros((1, 8, 8, 16)))
