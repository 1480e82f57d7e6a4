import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common.networks import unoptimised
from experiments.paper import activations
from mnv2.models import create_model
from tests.variables import random_variables


def test_positive_cut_saturated_and_dead_values_are_counted():
    values = np.array([[-1.0, 2.0, 7.0, -3.0], [4.0, 0.0, 6.0, -1.0]]).reshape(1, 1, 2, 4)
    found = activations.activity(jnp.asarray(values))
    assert (found.channels, found.positive, found.deviation) == (4, 50, 0)
    assert (found.fewest, found.most) == (50, 50)
    assert (found.cut, found.saturated, found.dead) == (50, 25, 25)


@pytest.mark.parametrize("directions", [1, 3, 8])
def test_effective_rank_of_equally_strong_directions_is_their_number(directions):
    random = np.random.default_rng(0)
    basis = np.linalg.qr(random.normal(size=(8, 8)))[0][:directions]
    independent = np.kron(np.eye(directions), [[1.0], [-1.0]])
    values = (independent @ basis).reshape(1, 1, -1, 8)
    assert activations.effective_rank(jnp.asarray(values)) == pytest.approx(directions, rel=1e-4)


def test_effective_rank_of_a_constant_is_zero():
    assert activations.effective_rank(jnp.ones((2, 3, 3, 4))) == 0


def test_the_input_of_the_activation_function_is_found_in_every_layer():
    model = create_model(
        "mobilenet_v2", width=0.1, repeats=(1, 1, 1, 0, 0, 0, 0), num_classes=3, bottleneck="relu6"
    )
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: 0 * x if path[-1].key == "bias" else x, random_variables(model)
    )
    found = unoptimised(lambda x: activations.before_activation(model, variables, x, train=True))(
        images
    )
    assert len(found) == 1 + 2 + 2 * 3 + 1
    for path in ("stem", "block_0/depthwise", "block_2/expand", "block_2/project", "last_conv"):
        # These values are normalised by the statistics of the batch, and ReLU6 has not cut them.
        assert float(jnp.abs(found[path].mean())) < 1e-3
        assert float(found[path].min()) < 0
