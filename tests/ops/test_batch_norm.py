import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from mnv2.models.batch_norm import BatchNorm
from mnv2.ops.batch_norm import DeviceGroup, normalize_batch
from mnv2.ops.relu6 import relu6


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    x = 3 + 2 * random.normal(size=(8, 5, 4, 6))
    return x, random.normal(size=6), random.normal(size=6)


def test_a_batch_is_normalised_by_its_own_mean_and_biased_variance(inputs):
    with jax.enable_x64(True):
        x, scale, bias = map(jnp.asarray, inputs)
        y, mean, var = normalize_batch(x, scale, bias, 1e-3, None)
        np.testing.assert_allclose(mean, np.mean(x, (0, 1, 2)), rtol=1e-12)
        np.testing.assert_allclose(var, np.var(x, (0, 1, 2)), rtol=1e-10)
        expected = (x - mean) / np.sqrt(var + 1e-3) * scale + bias
        np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("then_relu6", [False, True])
def test_gradients_equal_finite_differences_in_float64(inputs, then_relu6):
    with jax.enable_x64(True):
        # With a wide scale, values lie on both sides of ReLU6's kinks, and none too near to them.
        arguments = tuple(map(jnp.asarray, (inputs[0], 4 * inputs[1], 3 + inputs[2])))
        weights = jnp.cos(jnp.arange(arguments[0].size)).reshape(arguments[0].shape)

        def loss(x, scale, bias):
            x, scale, bias = map(jnp.asarray, (x, scale, bias))
            y, _, _ = normalize_batch(x, scale, bias, 1e-3, None, then_relu6)
            return jnp.sum(jnp.tanh(y / 6) * weights)

        y, _, _ = normalize_batch(*arguments, 1e-3, None)
        kinks = abs(y[..., None] - jnp.array([0.0, 6.0])).min()
        assert kinks > 1e-4
        assert (y < 0).any()
        assert (y > 6).any()
        check_grads(loss, arguments, order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


def test_relu6_inside_equals_relu6_after_it(inputs):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def run(normalize):
        def loss(x, scale, bias):
            y, mean, var = normalize(x, 4 * scale, 3 + bias)
            return jnp.sum(y * weights), (y, mean, var)

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(x, scale, bias)

    def after(*arguments):
        y, *statistics = normalize_batch(*arguments, 1e-3, None)
        return relu6(y), *statistics

    inside = run(lambda *arguments: normalize_batch(*arguments, 1e-3, None, True))
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(run(after)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_outputs_gradients_and_running_statistics_equal_those_of_flax(inputs):
    x = jnp.asarray(inputs[0], jnp.float32)
    ours, theirs = BatchNorm(x.shape[-1], 0.9, 1e-3), nn.BatchNorm(momentum=0.9, epsilon=1e-3)
    variables = ours.init(jax.random.key(0), x, True)
    variables["params"]["scale"] = jnp.asarray(inputs[1], jnp.float32)
    variables["params"]["bias"] = jnp.asarray(inputs[2], jnp.float32)

    def run(apply):
        def loss(params, x):
            y, new = apply({**variables, "params": params}, x)
            return jnp.sum(jnp.sin(y)), (y, new["batch_stats"])

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    result = run(lambda v, x: ours.apply(v, x, True, mutable=["batch_stats"]))
    expected = run(
        lambda v, x: theirs.apply(v, x, use_running_average=False, mutable=["batch_stats"])
    )
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        ours.apply(variables, x, False),
        theirs.apply(variables, x, use_running_average=True),
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_group_of_devices_has_the_statistics_of_its_own_images(inputs, size):
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    _, mean, var = jax.pmap(
        lambda x: normalize_batch(x, scale, bias, 1e-3, DeviceGroup("d", size)),
        axis_name="d",
        devices=jax.devices()[:4],
    )(x.reshape(4, 2, *x.shape[1:]))
    groups = x.reshape(4 // size, -1, x.shape[-1])
    np.testing.assert_allclose(mean, np.repeat(np.mean(groups, 1), size, 0), rtol=1e-5)
    np.testing.assert_allclose(var, np.repeat(np.var(groups, 1), size, 0), rtol=1e-4)


def test_several_devices_compute_the_same_as_one_device_with_the_whole_batch(inputs):
    devices = 4
    x, scale, bias = (jnp.asarray(a, jnp.float32) for a in inputs)
    weights = jnp.cos(jnp.arange(x.size)).reshape(x.shape)

    def loss(x, weights, axis_name):
        y, mean, var = normalize_batch(x, scale, bias, 1e-3, axis_name)
        return jnp.sum(y * weights), (y, mean, var)

    whole = jax.grad(lambda x: loss(x, weights, None), has_aux=True)(x)
    parts = jax.pmap(
        lambda x, w: jax.grad(lambda x: loss(x, w, "d"), has_aux=True)(x),
        axis_name="d",
        devices=jax.devices()[:devices],
    )(*(a.reshape(devices, -1, *a.shape[1:]) for a in (x, weights)))
    (gradient, (y, mean, var)), (whole_gradient, (whole_y, whole_mean, whole_var)) = parts, whole
    np.testing.assert_allclose(y.reshape(x.shape), whole_y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient.reshape(x.shape), whole_gradient, rtol=1e-4, atol=1e-5)
    for device in range(devices):
        np.testing.assert_allclose(mean[device], whole_mean, rtol=1e-5)
        np.testing.assert_allclose(var[device], whole_var, rtol=1e-4)
