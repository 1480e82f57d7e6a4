"""Exported files compute what JAX computes, with the operators that a phone should run."""

import collections
import dataclasses
import functools
import importlib.util
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from mnv2.deployment import formats
from mnv2.deployment.exported import open_exported
from mnv2.deployment.pictures import batches
from mnv2.deployment.program import program_of
from mnv2.models import resnet, with_conventions
from mnv2.pretrained.loaded import DenseHead, Pretrained
from mnv2.runtime.errors import UserError
from tests.deployment.networks import SHORT, network, pixels

pytest.importorskip("litert_converter")  # it has wheels for two platforms

EXPORTED = {"litert": ".tflite", "onnx": ".onnx"}


def exported(loaded, to, folder, **options):
    """Exports a network, and opens the file."""
    dynamic = options.pop("dynamic", False)
    program = program_of(loaded, **options)
    path = folder / f"network{formats.FORMATS[to].suffix}"
    shown = list(batches(program, program.description.input_of(pixels(loaded))))
    path.write_bytes(formats.content(program, to, shown, dynamic=dynamic))
    return open_exported(path, threads=1)


SMALL = network(repeats=SHORT, width=1.4)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Returns the file of SMALL in a format; each is exported once."""
    return functools.cache(lambda to: exported(SMALL, to, tmp_path_factory.mktemp("small")))


def of_jax(loaded):
    """Returns the logits in JAX for the images of `pixels`."""
    images = pixels(loaded).astype(np.float32)
    logits = jax.jit(
        lambda images: loaded.logits(loaded.variables, images),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(logits(images))


# The operators of the paper, without others.
V1 = {"litert": {"CONV_2D": 14, "DEPTHWISE_CONV_2D": 13}, "onnx": {"Conv": 27, "Clip": 27}}
V2 = {
    "litert": {"CONV_2D": 9, "DEPTHWISE_CONV_2D": 4, "ADD": 1},
    "onnx": {"Conv": 13, "Clip": 9, "Add": 1},
}
AT_THE_ENDS = {
    "litert": {"MEAN": 1, "FULLY_CONNECTED": 1},
    "onnx": {"ReduceMean": 1, "Gemm": 1, "Transpose": 1, "Identity": 1},
}


@pytest.mark.parametrize(
    ("fields", "operators"),
    [
        ({}, V2),
        ({"bottleneck": "relu6"}, {**V2, "onnx": {**V2["onnx"], "Clip": 13}}),
        ({"padding": "symmetric", "classes": 1}, None),
        ({"size": (33, 50), "channels": 1, "strides": "small"}, None),
        ({"block": "separable_shortcut"}, None),
        ({"shortcut": "expansion", "dtype": "bfloat16"}, None),
        ({"name": "mobilenet_v1", "width": 0.25, "size": (64, 64)}, V1),
        ({"name": "resnet50", "width": 0.1}, None),
    ],
    ids=str,
)
def test_a_file_gives_the_logits_of_jax_by_the_operators_of_the_paper(
    fields, operators, tmp_path, monkeypatch
):
    stages = tuple((channels, 1) for channels, _ in resnet.STAGES)  # not 16 blocks
    monkeypatch.setattr(resnet, "STAGES", stages)
    loaded = network(
        **(fields if "name" in fields else {"repeats": SHORT, "width": 0.35, **fields})
    )
    model = with_conventions(loaded.model, dtype=np.float32)  # whatever it was trained with
    expected = of_jax(dataclasses.replace(loaded, model=model))
    for to in EXPORTED:
        one = exported(loaded, to, tmp_path, pixels=False)
        logits = one.logits(pixels(loaded).astype(np.float32))
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), err_msg=to)
        if operators:
            assert collections.Counter(one.operators) == {**operators[to], **AT_THE_ENDS[to]}


@pytest.mark.parametrize(("to", "output"), [("litert", "softmax"), ("onnx", "sigmoid")])
def test_a_file_takes_pixels_and_gives_probabilities(to, output, tmp_path):
    loaded = dataclasses.replace(SMALL, output=output)
    one = exported(loaded, to, tmp_path, batch=2)
    images = pixels(loaded)
    expected = np.asarray(loaded.probabilities(images.astype(np.float32)))
    np.testing.assert_allclose(one.run(images), expected, atol=1e-5)
    np.testing.assert_allclose(one.probabilities(images), expected, atol=1e-5)
    assert (one.preprocess, one.image_size) == (loaded.preprocess, (32, 32))
    assert (one.class_names, one.output) == (loaded.class_names, output)


def test_a_head_of_dense_layers_is_exported(tmp_path):
    backbone = network(repeats=SHORT, width=0.35, classes=0)
    model = DenseHead(backbone.model, ((8, "gelu"), (3, "linear")))
    random = np.random.default_rng(2)
    heads = {
        f"dense_{i}": {
            "kernel": jnp.asarray(random.normal(size=shape), jnp.float32),
            "bias": jnp.asarray(random.normal(size=shape[1:]), jnp.float32),
        }
        for i, shape in enumerate([(1280, 8), (8, 3)])
    }
    variables = {
        "params": {"backbone": backbone.variables["params"], **heads},
        "batch_stats": {"backbone": backbone.variables["batch_stats"]},
    }
    loaded = Pretrained(model, variables, backbone.preprocess, (32, 32))
    expected = of_jax(loaded)
    for to in EXPORTED:
        one = exported(loaded, to, tmp_path, pixels=False)
        logits = one.logits(pixels(loaded).astype(np.float32))
        np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max(), err_msg=to)
        assert one.class_names is None
        assert one.display_names == ("class 0", "class 1", "class 2")


def test_in_onnx_pixels_are_cast_before_they_are_transposed(small):
    nodes = onnx.load(small("onnx").path).graph.node
    assert [node.op_type for node in nodes if "image" in node.input] == ["Cast"]


def test_in_onnx_a_result_that_is_used_twice_has_its_bias_and_its_mean_once(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 4)).astype(np.float32)

    def logits(images):
        x = jax.lax.conv_general_dilated(
            images, kernel, (8, 8), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        summed = jax.numpy.sum(x, (1, 2))
        biased = jax.numpy.mean(x + np.arange(4, dtype=np.float32), (1, 2))
        return biased + summed / np.prod(x.shape[1:3]) + summed

    program = dataclasses.replace(program_of(SMALL, pixels=False), logits=logits)
    path = tmp_path / "twice.onnx"
    path.write_bytes(formats.content(program, "onnx"))
    images = SMALL.preprocess(pixels(SMALL))[:1]
    np.testing.assert_allclose(
        open_exported(path).run(np.asarray(images)), logits(images), atol=1e-4
    )


def test_a_probability_of_0_is_half_a_step_of_an_8_bit_file(small):
    exact, rounded = small("litert"), small("litert-int8")
    assert (exact.step, rounded.step) == (0, pytest.approx(1 / 256))
    certain = dataclasses.replace(rounded, run=lambda _: np.array([[0.0, 1.0]], np.float32))
    assert certain.logits(pixels(SMALL))[0].tolist() == pytest.approx([np.log(1 / 512), 0])


def test_without_the_background_a_file_that_saw_nothing_else_has_no_favourite(small):
    certain = np.zeros((1, 1001), np.float32)
    certain[0, 0] = 1
    rounded = small("litert-int8")
    imagenet = dataclasses.replace(rounded, classes=1001, run=lambda _: certain)
    logits = imagenet.without_background().logits(pixels(SMALL))
    np.testing.assert_allclose(logits, np.full((1, 1000), np.log(1 / 512)), rtol=1e-6)


def test_an_onnx_file_takes_any_number_of_images_if_it_is_asked_to(tmp_path):
    one = exported(SMALL, "onnx", tmp_path, dynamic=True)
    images = pixels(SMALL)
    whole = one.run(images)
    assert whole.shape == (5, 4)
    np.testing.assert_allclose(np.concatenate([one.run(x[None]) for x in images]), whole, atol=1e-6)


def test_stablehlo_is_run_by_jax_alone(tmp_path):
    program = program_of(SMALL)
    stored = formats.content(program, "stablehlo", dynamic=True)
    images = pixels(SMALL)
    outputs = jax.export.deserialize(bytearray(stored)).call(images)
    np.testing.assert_allclose(outputs, jax.jit(program.output)(images), atol=1e-6)


@pytest.mark.parametrize("to", EXPORTED)
def test_names_of_any_kind_are_in_a_file(to, tmp_path):
    names = ("caf\udce9", "two\nlines", "猫", "$5")
    loaded = dataclasses.replace(network(repeats=SHORT, width=0.1), class_names=names)
    one = exported(loaded, to, tmp_path)
    assert one.class_names == names
    if to == "onnx":
        (classes,) = [x.value for x in onnx.load(one.path).metadata_props if x.key == "classes"]
        assert classes.split("\n") == ["caf?", "two lines", "猫", "$5"]


def test_the_names_of_classes_are_where_others_look_for_them(small, tmp_path):
    path = small("litert").path
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode().splitlines() == list(SMALL.class_names)
    assert exported(SMALL, "litert", tmp_path).path.read_bytes() == path.read_bytes()
    properties = {x.key: x.value for x in onnx.load(small("onnx").path).metadata_props}
    assert properties["classes"].splitlines() == list(SMALL.class_names)


@pytest.mark.parametrize("to", ["litert-int8", "onnx-int8"])
def test_int8_files_are_small_and_close_to_float32(to, small):
    rounded, exact = small(to), small(to.removesuffix("-int8"))
    assert rounded.path.stat().st_size < 0.45 * exact.path.stat().st_size
    images = pixels(SMALL)
    np.testing.assert_allclose(rounded.run(images), exact.run(images), atol=0.2)
    assert rounded.class_names == SMALL.class_names


@pytest.mark.parametrize(
    ("to", "package"),
    [("litert", "litert_converter"), ("litert-int8", "ai_edge_quantizer"), ("onnx", "onnx")],
)
def test_a_package_that_is_missing_is_named_with_what_works_without(to, package, monkeypatch):
    assert importlib.util.find_spec(package)
    for name in [*sys.modules]:
        if name == package or name.startswith((f"{package}.", "mnv2.deployment.onnx")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        UserError, match=rf"--to {to} needs .*{package}.* is missing\): pip install"
    ):
        formats.content(program_of(network(repeats=SHORT, width=0.1)), to)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no LiteRT file|ONNX Runtime cannot read"),
        (b"\0\0\0\0TFL3" + b"\0" * 100, "LiteRT cannot read|ONNX Runtime cannot read"),
    ],
)
@pytest.mark.parametrize("suffix", [".tflite", ".onnx"])
def test_a_damaged_file_is_refused_in_one_line(suffix, content, message, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_exported(path)


def test_a_network_whose_layers_are_off_is_refused_in_8_bits_with_their_names(tmp_path):
    loaded = network(repeats=SHORT, width=0.1)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: x - 100 if path[-1].key == "bias" else x, loaded.variables
    )
    loaded = dataclasses.replace(loaded, variables=variables)
    with pytest.raises(
        UserError, match=r"all calibration pictures: stem, block_0/depthwise, .* more\)"
    ):
        exported(loaded, "litert-int8", tmp_path)
    assert np.isfinite(exported(loaded, "onnx-int8", tmp_path).run(pixels(loaded))).all()
