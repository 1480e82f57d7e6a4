import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.models import NETWORKS, create_model, features, make_divisible
from mnv2.models.shapes import variable_shapes
from mnv2.runtime.errors import UserError
from tests import outputs
from tests.deployment.networks import SHORT
from tests.variables import random_variables


def short(name):
    """Returns the field that leaves 4 blocks of MobileNetV2."""
    return {"repeats": SHORT} if name == "mobilenet_v2" else {}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("strides", "shape"), [("imagenet", (1, 64, 64, 3)), ("small", (2, 33, 47, 1))]
)
def test_every_network_accepts_any_image_size_and_returns_float32_logits(name, strides, shape):
    fields = short(name) | {"strides": strides, "dtype": "bfloat16"}
    model = create_model(name, width=0.1, num_classes=7, **fields)
    variables = variable_shapes(model, shape[-1])
    logits = jax.eval_shape(model.apply, variables, jnp.zeros(shape))
    assert (logits.shape, logits.dtype) == ((shape[0], 7), jnp.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_and_statistics_stay_float32_in_half_precision(name):
    fields = short(name) | {"strides": "small", "dtype": "bfloat16"}
    model = create_model(name, width=0.1, num_classes=3, **fields)

    def train(images):
        variables = model.init(jax.random.key(0), images)
        rngs = {"dropout": jax.random.key(2)}
        return variables, model.apply(
            variables, images, train=True, mutable=["batch_stats"], rngs=rngs
        )

    shapes = jax.eval_shape(train, jnp.zeros((2, 32, 32, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_in_half_precision_are_close_to_logits_in_float32(name):
    fields = short(name) | {"width": 0.1, "num_classes": 5, "strides": "small"}
    variables = random_variables(create_model(name, **fields))
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    exact = outputs.of(create_model(name, **fields), variables, images)
    half = jax.jit(create_model(name, **fields, dtype="bfloat16").apply)(variables, images)
    np.testing.assert_allclose(half, exact, atol=0.05 * float(jnp.abs(exact).max()))


def test_intermediate_features_have_the_shapes_of_table_2():
    model = create_model("mobilenet_v2")
    shapes = jax.eval_shape(
        lambda variables, x: features(model, variables, x),
        variable_shapes(model, 3),
        jnp.zeros((1, 224, 224, 3)),
    )
    assert shapes["stem"].shape == (1, 112, 112, 32)
    outputs = [shapes[f"block_{i}"].shape[1:] for i in (0, 2, 5, 9, 12, 15, 16)]
    assert outputs == [
        (112, 112, 16), (56, 56, 24), (28, 28, 32), (14, 14, 64), (14, 14, 96), (7, 7, 160),
        (7, 7, 320),
    ]  # fmt: skip
    assert shapes["block_13_expanded"].shape == (1, 14, 14, 576)
    assert shapes["last_conv"].shape == (1, 7, 7, 1280)
    assert shapes["logits"].shape == (1, 1000)


def test_rounding_follows_the_published_channel_lists():
    channels = (32, 16, 24, 32, 64, 96, 160, 320)
    assert [make_divisible(c * 1.4) for c in channels] == [48, 24, 32, 48, 88, 136, 224, 448]
    assert [make_divisible(c * 0.75) for c in channels] == [24, 16, 24, 24, 48, 72, 120, 240]
    assert [make_divisible(c * 0.35) for c in channels] == [16, 8, 8, 16, 24, 32, 56, 112]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "mobilnet_v2"}, "unknown model 'mobilnet_v2': did you mean 'mobilenet_v2'"),
        ({"wdith": 1.0}, "unknown field of mobilenet_v2 'wdith': did you mean 'width'"),
        ({"bottleneck": "relu"}, "unknown bottleneck 'relu': did you mean 'relu6'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused_with_a_message(fields, message):
    with pytest.raises(UserError, match=message):
        create_model(fields.pop("name", "mobilenet_v2"), **fields)
