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
    DepthwiseOptions,
    depthwise,
    depthwise_and_normalize,
    depthwise_conv,
    depthwise_triton,
    normalize_batch,
    traced_for,
)
from tests.ops.test_depthwise import grouped, random_inputs
from tests.variables import random_variables

QUICK = {"xla_backend_optimization_level": 0}
# Instructions per element that a kernel writes.
MOST = {"depthwise": 50, "depthwise_gradients": 50, "depthwise_norm_gradients": 80}
# The last column: whether ReLU6 follows batch norm; None without batch norm.
CASES = [
    ((5, 32), 33, 1, "symmetric", False, True),  # whose columns fill two blocks
    ((6, 16), 33, 2, "symmetric", True, False),  # which has half a row and half a column more
    ((7, 7), 40, 1, "same", True, None),
    ((7, 7), 40, 1, "same", True, False),
    ((7, 7), 40, 2, "same", True, True),
    ((4, 3), 130, 2, "same", False, None),
    ((1, 2), 8, 2, "same", True, True),
]


@pytest.fixture
def interpreted(monkeypatch):
    """Lets the forms for CUDA use the kernels on this CPU."""
    functions = {
        name: functools.partial(getattr(depthwise_triton, name), interpret=True)
        for name in ("convolve", "gradients")
    }
    monkeypatch.setattr(depthwise, "kernels_for_cuda", lambda: types.SimpleNamespace(**functions))
    with traced_for("cuda"):
        yield


@pytest.mark.parametrize(
    ("size", "channels", "stride", "convention", "of_relu6", "then_relu6"), CASES
)
def test_the_kernels_compute_the_same_in_float64(
    float64, interpreted, size, channels, stride, convention, of_relu6, then_relu6
):
    """As the grouped convolution, followed by batch norm or not."""
    images, kernel, *options = random_inputs(size, stride, convention, 2, channels)
    scale, bias = (jnp.linspace(low, high, channels) for low, high in ((0.5, 2), (1, 3)))
    constants = 1e-3, None

    def with_kernels(images, kernel, *norm):
        if not norm:
            return (depthwise_conv(images, kernel, *options, of_relu6),)
        of_conv = DepthwiseOptions(*options, of_relu6)
        return depthwise_and_normalize(images, kernel, *norm, *constants, of_conv, then_relu6)

    def step_by_step(images, kernel, *norm):
        y = grouped(images, kernel, *options, of_relu6)
        return normalize_batch(y, *norm, *constants, then_relu6) if norm else (y,)

    def all_of(platform, operation):
        with traced_for(platform):
            (result, *moments), back = jax.vjp(
                operation, images, kernel, *(() if then_relu6 is None else (scale, bias))
            )
            gradient = jnp.cos(jnp.arange(result.size * 1.0)).reshape(result.shape)
            return result, *moments, *back((gradient, *map(jnp.zeros_like, moments)))

    ours, expected = (
        jax.jit(functools.partial(all_of, *one), compiler_options=QUICK)()
        for one in (("cuda", with_kernels), ("cpu", step_by_step))
    )
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_half_precision_is_rounded_once(interpreted):
    images, kernel, stride, padding = random_inputs((9, 9), 2, "same", 2, 16)
    half = [x.astype(jnp.bfloat16) for x in (images, kernel)]
    exact = grouped(*(x.astype(jnp.float32) for x in half), stride, padding)
    result = depthwise_conv(*half, stride, padding)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result, exact, rtol=2**-8, atol=1e-5)


def losses(platform):
    """Of three steps of a network with one block."""
    model = create_model("mobilenet_v2", width=0.1, repeats=(1, 0, 0, 0, 0, 0, 0), num_classes=5)
    variables = random_variables(model, 3)
    images = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    labels = jnp.arange(8) % 5

    def loss_of(params):
        logits, _ = model.apply(
            {**variables, "params": params}, images, train=True, mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params):
        loss, gradients = jax.value_and_grad(loss_of)(params)
        return loss, jax.tree.map(lambda x, g: x - 0.05 * g, params, gradients)

    params, found = variables["params"], []
    with traced_for(platform):
        for _ in range(3):
            loss, params = step(params)
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
    choose = depthwise.kernels_for_cuda.__wrapped__
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
    options = DepthwiseOptions(stride, ((stride % 2, 1), (stride % 2, 1)), True)
    shapes = (256, 56, 56, 144), (3, 3, 1, 144), (256, 56 // stride, 56 // stride, 144)
    arrays = [jax.ShapeDtypeStruct(shape, dtype, sharding=chip) for shape in shapes]

    def every(images, kernel, gradient):
        result = depthwise_triton.convolve(images, kernel, options, sums=True)
        norm = gradient, jnp.ones((4, 144)), True
        gradients = (
            depthwise_triton.gradients(images, kernel, gradient, options, norm)
            for norm in (None, norm)
        )
        return result, *gradients

    lowered = jax.jit(every, out_shardings=chip).lower(*arrays)
    compiler = {"xla_backend_optimization_level": 3}  # tests have less
    lowered.compile(instructions.dump_to(str(tmp_path)) | compiler)
    sources = instructions.sources(tmp_path)
    launches = {one.code: one for one in instructions.launches(Path(tmp_path)).values()}
    for name, most in MOST.items():
        code = instructions.assembled(sources[name])
        assert code.spilled == 0
        elements = 256 * 144 * 56**2 // (stride**2 if name == "depthwise" else 1)
        assert code.instructions * 32 * launches[name].warps / elements <= most, name
