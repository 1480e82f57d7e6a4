import jax.numpy as jnp
import numpy as np

from experiments.common.networks import submodules
from experiments.common.timing import in_turns, times
from experiments.paper import latency
from mnv2.models import create_model, features, fold_batch_norm
from mnv2.models.blocks import ConvBN
from tests.variables import random_variables


def test_layers_called_alone_give_the_output_of_the_network():
    model = create_model("mobilenet_v2", width=0.35, repeats=(1, 1, 1, 0, 0, 0, 0), num_classes=3)
    variables = random_variables(model)
    folded = fold_batch_norm(model, variables)
    found = submodules(model, folded, (2, 32, 32, 3), ConvBN)
    assert len(found) == 1 + 2 + 2 * 3 + 1
    # The first layers, called one after the other, give the same output as inside the network.
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    assert found["stem"].input_shape == images.shape
    x = images
    for path in ("stem", "block_0/depthwise", "block_0/project"):
        x = found[path].module.apply({"params": found[path].params}, x)
    np.testing.assert_allclose(x, features(model, folded, images)["block_0"], rtol=1e-4, atol=1e-5)
    assert x.shape == found["block_1/expand"].input_shape


def test_shares_add_up():
    rows = [
        latency.LayerTime("mobilenet_v2", "a", "depthwise", 10, 1.0, 1.0, 3.0, 1.5),
        latency.LayerTime("mobilenet_v2", "b", "1 x 1", 90, 1.0, 1.0, 1.0, 1.0),
    ]
    kinds = latency.table_of_kinds({"mobilenet_v2": rows}).lines
    assert kinds == [("V2: depthwise", "10.0", "75.0", "50"), ("V2: 1 x 1", "90.0", "25.0", "100")]
    sums = latency.table_of_sums({"mobilenet_v2": rows}, {"mobilenet_v2": 5.0}).lines
    assert sums == [("V2", "5.0", "4.0 (80%)", "2.5 (50%)")]


def test_steps_take_turns():
    order = []
    steps = {name: (lambda name=name: order.append(name)) for name in "ab"}
    medians = in_turns(steps, rounds=2, seconds=0, label="")
    assert order == ["a", "b", "a", "b", "a", "b"]  # one uncounted call each, then in turns
    assert [len(values) for values in medians.values()] == [2, 2]
    assert len(list(times(lambda: None, seconds=0))) == 1
