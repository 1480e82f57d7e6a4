import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2 import models
from mnv2.models import inference
from tests import outputs
from tests.deployment.networks import SHORT
from tests.variables import random_variables


@pytest.mark.parametrize("name", models.NETWORKS)
def test_logits_equal_those_of_the_network_even_if_the_last_chunk_is_smaller(name):
    short = {"repeats": SHORT} if name == "mobilenet_v2" else {}  # a quarter of the time
    model = models.create_model(name, width=0.1, num_classes=7, **short)
    shape = (2 * inference.IMAGES_PER_CHUNK + 1, 37, 32, 3)
    images = jax.random.normal(jax.random.key(1), shape)
    variables = random_variables(model)
    expected = outputs.of(model, variables, images)
    scale = float(jnp.abs(expected).max())
    logits = models.for_inference(model, variables)(images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5 * scale)


def test_no_part_of_batch_norm_remains_after_folding():
    model = models.create_model("mobilenet_v2", width=0.1, num_classes=7)
    images = jnp.zeros((1, 32, 32, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    folded = models.fold_batch_norm(model, ones)
    assert set(folded) == {"params"}
    assert set(folded["params"]["stem"]) == {"kernel", "bias"}
    assert set(folded["params"]["block_1"]["depthwise"]) == {"kernel", "bias"}
    program = str(jax.make_jaxpr(lambda x: model.apply(folded, x, train=False))(images))
    assert "rsqrt" not in program
