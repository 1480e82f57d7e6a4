"""The kernels for GPUs: interpreted on a CPU, and compiled where the compiler is installed."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnv2.models import create_model
from mnv2.ops import (
    PLAIN,
    depthwise,
    depthwise_conv,
    depthwise_conv_and_sums,
    depthwise_triton,
    traced_for,
)
from mnv2.ops.batch_norm import sums_of
from tests.ops.test_depthwise import grouped, random_inputs
from tests.variables import random_variables

QUICK = {"xla_backend_optimization_level": 0}
CASES = [
    ((5, 20), 33, 1, "symmetric", False),
    ((5, 20), 33, 2, "symmetric", True),
    ((7, 7), 40, 1, "same", True),
    ((7, 7), 40, 2, "same", True),
    ((4, 3), 130, 2, "same", False),
    ((1, 2), 8, 2, "same", True),
]


@pytest.fixture
def interpreted(monkeypatch):
    """Lets the forms for CUDA use the kernels on this CPU."""
    functions = {
        name: functools.partial(getattr(depthwise_triton, name), interpret=True)
        for name in ("convolve", "gradients")
    }
    monkeypatch.setattr(depthwise, "_kernels", lambda: types.SimpleNamespace(**functions))
    with traced_for("cuda"):
        yield


@pytest.mark.parametrize(("size", "channels", "stride", "convention", "of_relu6"), CASES)
def test_the_kernels_compute_the_grouped_convolution_and_its_sums_in_float64(
    float64, interpreted, size, channels, stride, convention, of_relu6
):
    images, kernel, *options = random_inputs(size, stride, convention, 2, channels)

    def grouped_and_sums(*inputs):
        result = grouped(*inputs)
        return result, sums_of(result)

    def all_of(conv, images, kernel):
        result, back, sums = jax.vjp(
            lambda *x: conv(*x, *options, of_relu6), images, kernel, has_aux=True
        )
        return result, *sums, *back(jnp.cos(jnp.arange(result.size * 1.0)).reshape(result.shape))

    expected, ours = (
        jax.jit(functools.partial(all_of, conv), compiler_options=QUICK)(images, kernel)
        for conv in (grouped_and_sums, depthwise_conv_and_sums)
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11)


def test_half_precision_is_rounded_once(interpreted):
    images, kernel, stride, padding = random_inputs((9, 9), 2, "same", 2, 16)
    half = [x.astype(jnp.bfloat16) for x in (images, kernel)]
    exact = grouped(*(x.astype(jnp.float32) for x in half), stride, padding)
    result = depthwise_conv(*half, stride, padding)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result, exact, rtol=2**-8, atol=1e-5)


def losses(platform):
    """Of three steps of a network with two strides and both kinds of expansion."""
    model = create_model("mobilenet_v2", width=0.1, repeats=(1, 1, 0, 0, 0, 0, 0), num_classes=5)
    variables = random_variables(model, 3)
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    labels = jnp.arange(8) % 5

    def loss_of(params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    with traced_for(platform):
        step = jax.jit(jax.value_and_grad(loss_of), compiler_options=QUICK)
        params, found = variables["params"], []
        for _ in range(3):
            loss, gradients = step(params)
            params = jax.tree.map(lambda x, g: x - 0.05 * g, params, gradients)
            found.append(float(loss))
    return found


def test_a_network_learns_the_same_with_the_kernels(interpreted):
    found = losses("cuda")
    assert found[-1] < found[0]
    np.testing.assert_allclose(found, losses(PLAIN), rtol=2e-3)


@pytest.mark.parametrize(
    ("platform", "said"), [("cpu", ""), ("cuda", "do not compile: Only interpret")]
)
def test_where_the_kernels_do_not_compile_there_is_another_form(
    monkeypatch, capsys, platform, said
):
    monkeypatch.setattr(depthwise, "platform_of", lambda device: platform)
    choose = depthwise._kernels.__wrapped__
    assert choose() is None
    assert said in capsys.readouterr().err
    if platform == "cuda":
        monkeypatch.setattr(depthwise_triton, "compile_small", lambda: None)
        assert choose() is depthwise_triton


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("gpu", ["H100", "A100", "RTX_4090"])
def test_the_kernels_compile_to_few_instructions_without_spills(tmp_path, gpu, stride, dtype):
    """Of the layers with 56 px of MobileNetV2, with 256 images."""
    pytest.importorskip("jax_plugins.xla_cuda13")
    from experiments.speed.compilers import instructions
    from experiments.speed.compilers.chips import Chip, one_chip

    chip = one_chip(Chip("cuda", gpu))
    options = depthwise.Options(stride, ((stride % 2, 1), (stride % 2, 1)), True)
    shapes = (256, 56, 56, 144), (3, 3, 1, 144), (256, 56 // stride, 56 // stride, 144)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=chip) for shape in shapes]

    def both(images, kernel, gradient):
        result = depthwise_triton.convolve(images, kernel, options, sums=True)
        return result, depthwise_triton.gradients(images, kernel, gradient, options)

    lowered = jax.jit(both, out_shardings=chip).lower(*arrays)
    compiler = {"xla_backend_optimization_level": 3}  # tests have less
    lowered.compile(instructions.dump_to(str(tmp_path)) | compiler)
    sources = instructions.sources(tmp_path)
    pixels = {"depthwise": 56 * 56 // stride**2, "depthwise_gradients": 56 * 56}
    launches = instructions.launches(Path(tmp_path)).values()
    assert {launch.code for launch in launches} >= pixels.keys()
    for launch in launches:
        if launch.code in pixels:
            code = instructions.assembled(sources[launch.code])
            assert code.spilled == 0
            per_element = code.instructions * 32 * launch.warps / (256 * 144 * pixels[launch.code])
            assert per_element <= 50, (launch.code, per_element)
