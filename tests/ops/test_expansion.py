import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnv2.ops import expand_and_normalize, expansion, normalize_batch, pointwise_conv

CONSTANTS = 1e-3, None  # epsilon, axis_name


def random_inputs(dtype=np.float64):
    random = np.random.default_rng(0)
    images = 2 + 3 * random.normal(size=(4, 5, 4, 6))
    others = random.normal(size=(1, 1, 6, 20)), random.normal(size=20), random.normal(size=20)
    return tuple(jnp.asarray(x, dtype) for x in (images, *others))


def one_by_one(images, kernel, scale, bias, *constants):
    return normalize_batch(pointwise_conv(images, kernel), scale, bias, *constants)


def loss_of(operation):
    def loss(*inputs):
        y, mean, var = operation(*inputs, *CONSTANTS)
        weights = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return jnp.sum(jnp.tanh(y) * weights), (y, mean, var)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True))


def test_results_and_gradients_equal_those_of_the_two_steps_in_float64(float64):
    inputs = random_inputs()
    ours, theirs = (loss_of(f)(*inputs) for f in (expand_and_normalize, one_by_one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11), ours, theirs)


def test_float32_results_are_close_to_those_of_the_two_steps():
    inputs = random_inputs(np.float32)
    ours, theirs = (loss_of(f)(*inputs) for f in (expand_and_normalize, one_by_one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), ours, theirs)


@pytest.mark.parametrize("ratio", [1, 10, 100])
def test_the_variance_is_as_exact_as_that_of_the_two_steps(ratio):
    """The mean of the images is up to 100 times their standard deviation."""
    errors = {expand_and_normalize: [], one_by_one: []}
    for seed in range(5):
        random = np.random.default_rng(seed)
        images = ratio + random.normal(size=(16, 8, 8, 12))
        images, kernel, scale, bias = (
            np.asarray(x, np.float32)
            for x in (images, random.normal(size=(1, 1, 12, 40)), np.ones(40), np.zeros(40))
        )
        exact = np.var(images.astype(float) @ kernel[0, 0].astype(float), (0, 1, 2))
        for operation, of_operation in errors.items():
            _, _, variance = jax.jit(operation, static_argnums=(4, 5))(
                images, kernel, scale, bias, *CONSTANTS
            )
            of_operation.append(np.max(abs(variance - exact) / exact))
    ours, theirs = (np.median(errors[each]) for each in (expand_and_normalize, one_by_one))
    assert ours <= max(theirs, 1e-6)
    assert ours < 1e-5


def test_several_devices_compute_the_same_as_one_device_with_the_whole_batch():
    devices = 4
    images, *others = random_inputs(np.float32)
    weights = jnp.cos(jnp.arange(images.size // 6 * 20)).reshape(*images.shape[:3], 20)

    def loss(inputs, weights, axis_name):
        y, mean, var = expand_and_normalize(*inputs, 1e-3, axis_name)
        return jnp.sum(y * weights), (mean, var)

    of_whole, statistics = jax.grad(loss, has_aux=True)((images, *others), weights, None)
    split = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, weights)]
    of_parts, of_each = jax.pmap(
        lambda images, weights: jax.grad(lambda x: loss(x, weights, "d"), has_aux=True)(
            (images, *others)
        ),
        "d",
        devices=jax.devices()[:devices],
    )(*split)
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(of_parts[0].reshape(images.shape), of_whole[0], **close)
    for parts, whole in zip(of_parts[1:], of_whole[1:], strict=True):
        # The gradients of each device cover its own images only.
        np.testing.assert_allclose(np.sum(parts, 0), whole, **close)
    for each, whole in zip(of_each, statistics, strict=True):
        np.testing.assert_allclose(each[0], whole, rtol=1e-5)


def test_half_precision_stays_half_precision_and_statistics_stay_float32():
    inputs = random_inputs(jnp.bfloat16)
    inputs = (*inputs[:2], *(x.astype(jnp.float32) for x in inputs[2:]))
    (_, (y, mean, var)), gradients = loss_of(expand_and_normalize)(*inputs)
    assert y.dtype == jnp.bfloat16
    assert {mean.dtype, var.dtype} == {jnp.dtype(jnp.float32)}
    assert [g.dtype for g in gradients] == [x.dtype for x in inputs]


@pytest.mark.parametrize(
    ("platform", "convolutions"), [("cpu", 0), ("cuda", 0), ("tpu", 3), ("rocm", 3)]
)
def test_other_platforms_convolve_first_and_then_normalise(platform, convolutions):
    inputs = random_inputs(np.float32)
    exported = jax.export.export(loss_of(expand_and_normalize), platforms=[platform])(*inputs)
    assert exported.mlir_module().count("stablehlo.convolution") == convolutions


def test_fusing_is_faster_only_for_layers_with_many_more_features_than_inputs():
    assert all(expansion.is_faster_fused(c, 6 * c) for c in (16, 24, 32, 64, 96, 160))
    assert not expansion.is_faster_fused(320, 1280)
    assert not expansion.is_faster_fused(144, 24)
