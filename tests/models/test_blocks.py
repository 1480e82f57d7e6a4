import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.analysis import complexity
from mnv2.models import create_model
from mnv2.models.blocks import ConvBN, Hourglass, InvertedResidual, SeparableBlock


def run(block, x, *arguments):
    variables = block.init(jax.random.key(0), x, False, *arguments)
    return block.apply(variables, x, False, *arguments), variables["params"]


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(1), (2, 6, 6, 16))


def test_the_inverted_residual_widens_convolves_and_narrows(x):
    (y, expanded), params = run(InvertedResidual(24, stride=2), x)
    assert params["expand"]["kernel"].shape == (1, 1, 16, 96)
    assert params["depthwise"]["kernel"].shape == (3, 3, 1, 96)
    assert params["project"]["kernel"].shape == (1, 1, 96, 24)
    assert (expanded.shape, y.shape) == ((2, 6, 6, 96), (2, 3, 3, 24))


def test_without_expansion_there_is_no_expansion_layer(x):
    (_, expanded), params = run(InvertedResidual(16, expansion=1), x)
    assert set(params) == {"depthwise", "project"}
    assert expanded is x


def test_a_linear_bottleneck_can_be_negative_and_a_relu6_one_cannot(x):
    (linear, _), _ = run(InvertedResidual(24, bottleneck="linear"), x)
    (relu6, _), _ = run(InvertedResidual(24, bottleneck="relu6"), x)
    assert float(linear.min()) < 0
    np.testing.assert_array_equal(relu6, jnp.clip(linear, 0, 6))


@pytest.mark.parametrize("shortcut", ["bottleneck", "expansion"])
def test_relu_inside_is_relu6_without_its_bound(x, shortcut):
    block = InvertedResidual(24, shortcut=shortcut)
    other = block.clone(activation=jax.nn.relu)
    previous = jnp.ones((2, 6, 6, 96))
    for factor, same in ((1.0, True), (100.0, False)):
        (bounded, first), _ = run(block, factor * x, factor * previous)
        (unbounded, second), _ = run(other, factor * x, factor * previous)
        np.testing.assert_allclose(first, jnp.minimum(second, 6), rtol=1e-5, atol=1e-5)
        assert np.allclose(bounded, unbounded, rtol=1e-4, atol=1e-5) == same


def test_the_shortcut_between_bottlenecks_adds_the_input(x):
    (with_shortcut, _), _ = run(InvertedResidual(16), x)
    (without, _), _ = run(InvertedResidual(16, shortcut="none"), x)
    np.testing.assert_allclose(with_shortcut, without + x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", [InvertedResidual(24), InvertedResidual(16, stride=2)])
def test_there_is_no_shortcut_if_input_and_output_differ_in_shape(x, other):
    (result, _), _ = run(other, x)
    (expected, _), _ = run(other.clone(shortcut="none"), x)
    np.testing.assert_array_equal(result, expected)


def test_the_shortcut_between_expansions_adds_the_previous_expanded_tensor(x):
    block = InvertedResidual(24, shortcut="expansion")
    previous = jnp.ones((2, 6, 6, 96))
    (_, expanded), _ = run(block, x, previous)
    (_, plain), _ = run(block, x, jnp.zeros((2, 6, 6, 96)))
    assert float(jnp.abs(expanded - plain).max()) > 0.5
    (_, unchanged), _ = run(block, x, jnp.ones((2, 3, 3, 96)))
    np.testing.assert_array_equal(unchanged, plain)


def additions(shortcut):
    """Counts the additions of two image tensors in a network."""
    model = create_model("mobilenet_v2", shortcut=shortcut)
    program = jax.make_jaxpr(lambda x: model.init_with_output(jax.random.key(0), x)[0])

    def count(jaxpr):
        own = sum(
            equation.primitive.name == "add"
            and all(getattr(operand.aval, "ndim", 0) == 4 for operand in equation.invars)
            and equation.invars[0].aval.shape == equation.invars[1].aval.shape
            for equation in jaxpr.eqns
        )
        return own + sum(
            count(inner) for eqn in jaxpr.eqns for inner in complexity._subprograms(eqn)
        )

    return count(program(jnp.zeros((1, 224, 224, 3))).jaxpr)


def test_both_kinds_of_shortcut_occur_ten_times_in_the_network():
    none = additions("none")
    assert additions("bottleneck") - none == 10
    assert additions("expansion") - none == 10


def test_the_separable_block_convolves_each_channel_and_then_mixes_the_channels(x):
    y, params = run(SeparableBlock(24, stride=2), x)
    assert params["depthwise"]["kernel"].shape == (3, 3, 1, 16)
    assert params["pointwise"]["kernel"].shape == (1, 1, 16, 24)
    assert set(params["depthwise"]) == {"kernel", "bn"}
    assert y.shape == (2, 3, 3, 24)


@pytest.mark.parametrize(("features", "added"), [(16, True), (24, False)])
def test_the_separable_block_can_add_its_input_before_the_last_relu6(x, features, added):
    block = SeparableBlock(features, shortcut=True)
    variables = block.init(jax.random.key(0), x)
    variables["params"]["pointwise"]["bn"]["scale"] *= 0  # the convolutions give 0
    expected = jnp.clip(x, 0, 6) if added else jnp.zeros((2, 6, 6, features))
    np.testing.assert_array_equal(block.apply(variables, x), expected)
    without = block.clone(shortcut=False).apply(variables, x)
    np.testing.assert_array_equal(without, jnp.zeros_like(expected))


def test_with_xception_the_depthwise_convolution_has_no_batch_norm_and_no_activation(x):
    y, params = run(SeparableBlock(24, xception=True), x)
    assert set(params["depthwise"]) == {"kernel"}
    # Without activation in between, the block is linear before its last ReLU6: a value that is
    # positive for x is not positive for -x.
    opposite, _ = run(SeparableBlock(24, xception=True), -x)
    assert not bool(jnp.any((y > 0) & (opposite > 0)))


def test_the_hourglass_narrows_to_a_quarter_and_adds(x):
    y, params = run(Hourglass(16), x)
    assert params["narrow"]["kernel"].shape == (1, 1, 16, 4)
    assert params["convolve"]["kernel"].shape == (3, 3, 4, 4)
    assert params["widen"]["kernel"].shape == (1, 1, 4, 16)
    assert "shortcut" not in params
    assert y.shape == x.shape
    strided, params = run(Hourglass(32, stride=2), x)
    assert params["shortcut"]["kernel"].shape == (1, 1, 16, 32)
    assert strided.shape == (2, 3, 3, 32)


def test_depthwise_initial_values_do_not_depend_on_the_number_of_channels():
    kernels = {
        channels: jax.jit(ConvBN(channels, depthwise=True).init)(
            jax.random.key(0), jnp.zeros((1, 4, 4, channels))
        )["params"]["kernel"]
        for channels in (512, 2048)
    }
    for kernel in kernels.values():
        assert float(jnp.std(kernel)) == pytest.approx((2 / 9) ** 0.5, rel=0.03)
