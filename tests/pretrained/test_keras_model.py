"""The layers that a user's Keras model has around the network: they scale, resize and classify."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.pretrained import keras as keras_reader
from mnv2.pretrained import keras_graph, keras_model
from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.slim import SLIM
from mnv2.runtime.errors import UserError
from tests.pretrained.test_keras import (
    SIZE,
    assert_same,
    fixed_seed,  # noqa: F401
    images,
    output_of,
    randomized,
    v2,
)

keras = pytest.importorskip("keras")  # comes with TensorFlow

LAYERS, OPS = keras.layers, keras.ops


def adapted():
    layer = LAYERS.Normalization()
    layer.adapt(images((32, 32)))
    return layer


def drawn_batch_norm(**fields):
    layer = LAYERS.BatchNormalization(**fields)
    layer.build((None, 32, 32, 3))
    layer.set_weights(
        [np.array(value) for value in np.random.default_rng(3).uniform(0.5, 2, (4, 3))]
    )
    return layer


SCALINGS = {
    "operators with whole numbers": lambda x: x / 255 - 1,
    "operators on the right": lambda x: 1 - 2 * (3 + x) / 255,
    "a factor and a sign": lambda x: -(x * (1 / 127.5)) + 1.0,
    "functions of keras.ops": lambda x: OPS.subtract(OPS.multiply(OPS.cast(x, "float32"), 0.1), 1),
    "a constant per channel": lambda x: (x - np.array([1.0, 2, 3])) / np.array([4.0, 5, 6]),
    "preprocess_input": keras.applications.mobilenet_v2.preprocess_input,
    "preprocess_input of PyTorch": lambda x: (
        keras.applications.imagenet_utils.preprocess_input(x, mode="torch")
    ),
    "Normalization": lambda x: LAYERS.Normalization(mean=[1.0, 2, 3], variance=[4.0, 5, 6])(x),
    "inverted Normalization": lambda x: LAYERS.Normalization(mean=1, variance=9, invert=True)(x),
    "adapted Normalization": lambda x: adapted()(x),
    "Rescaling per channel": lambda x: LAYERS.Rescaling([1.0, 0.5, 0.1], [-1, 2, 3])(x),
    "batch norm": lambda x: drawn_batch_norm()(x),
    "batch norm without scale": lambda x: LAYERS.BatchNormalization(scale=False)(x) / 9,
    "a nested model": lambda x: (
        keras.Sequential([LAYERS.RandomFlip(), LAYERS.RandomZoom(0.2), LAYERS.Rescaling(2)])(x) * 3
    ),
    "linear activation": lambda x: LAYERS.Activation("linear")(x) / 2,
    "Lambda": lambda x: LAYERS.Lambda(keras.applications.mobilenet_v2.preprocess_input)(x),
}  # fmt: skip


def tensors_of(model):
    """Returns the variables of a model as in its files, by LAYER/VARIABLE."""
    return {"/".join(v.path.split("/")[-2:]): v.numpy() for v in model.weights}


def scaling_of(model):
    """Returns the preprocessing of a model that has only layers before a network."""
    graph = keras_graph.read(model.to_json())
    tensors = tensors_of(model)
    chain = keras_model.walk_back(graph.output, None)
    changes, _ = keras_model.read_pixels(chain, tensors)
    assert not tensors
    return dataclasses.replace(SLIM, **changes)


@pytest.mark.parametrize("name", SCALINGS)
def test_the_layers_before_a_network_scale_pixels_as_in_keras(name):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, SCALINGS[name](inputs))
    x = images((32, 32))
    expected = output_of(model, x)
    preprocess = scaling_of(model)
    assert preprocess.assumed == (name == "Lambda")  # whose module the file does not tell
    np.testing.assert_allclose(preprocess(x), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("module", "assumed"),
    [
        (None, True),
        ("builtins", True),  # which Keras 3 writes for any function
        ("__main__", True),
        ("keras.src.applications.mobilenet_v2", False),
        ("tensorflow.python.keras.applications.xception", False),  # computes the same
        ("keras.src.applications.vgg16", None),
        ("keras.src.applications.mobilenet_v3", None),
        ("keras_applications.imagenet_utils", None),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_only_a_preprocess_input_that_can_be_mobilenets_is_taken(module, assumed, nested):
    config = {"function": "preprocess_input", "module": module}
    if nested:
        config = {"function": {"config": "preprocess_input", "module": module}}
    prepare = keras_graph.Layer("Lambda", "a", config, [], [], 1, "")
    if assumed is None:
        with pytest.raises(UserError, match=r"layer 'a' \(Lambda\) before the network is not"):
            keras_model.read_pixels([prepare], {})
        return
    changes, _ = keras_model.read_pixels([prepare], {})
    assert changes == {"mean": (0.5,), "std": (0.5,), "assumed": assumed}


NOT_UNDERSTOOD = {
    "Lambda": lambda x: LAYERS.Lambda(lambda t: t * 2)(x),
    "TrueDivide": lambda x: 1 / (x + 1),
    "GetItem": lambda x: x[..., ::-1],
    "Sqrt": OPS.sqrt,
    "LayerNormalization": lambda x: LAYERS.LayerNormalization()(x),
    "CenterCrop": lambda x: LAYERS.CenterCrop(16, 16)(x),
    "RandomCrop": lambda x: LAYERS.RandomCrop(32, 32)(x),
    "ZeroPadding2D": lambda x: LAYERS.ZeroPadding2D(1)(x),
    "Conv2D": lambda x: LAYERS.Conv2D(3, 1)(x),
    "Add": lambda x: x + x / 2,
    "Stack": lambda x: keras.applications.resnet.preprocess_input(x),
    "of the pixel 0": lambda x: x * 0,
}


@pytest.mark.parametrize("kind", NOT_UNDERSTOOD)
def test_a_layer_before_a_network_that_is_not_understood_is_named(kind):
    inputs = keras.Input((32, 32, 3))
    with pytest.raises(UserError, match=rf"{kind}.* not |{kind}.*no picture"):
        scaling_of(keras.Model(inputs, NOT_UNDERSTOOD[kind](inputs)))


def test_layers_that_augment_do_nothing_in_evaluation():
    arguments = {
        "GaussianDropout": (0.5,), "GaussianNoise": (0.5,), "AlphaDropout": (0.5,),
        "Dropout": (0.5,), "SpatialDropout2D": (0.5,), "RandomBrightness": (0.5,),
        "RandomColorDegeneration": (0.5,), "RandomContrast": (0.5,), "RandomGrayscale": (0.5,),
        "RandomHue": (0.5,), "RandomPosterization": (4,), "RandomRotation": (0.5,),
        "RandomSaturation": (0.5,), "RandomSharpness": (0.5,), "RandomTranslation": (0.3, 0.3),
        "RandomZoom": (0.5,), "RandomInvert": (0.9,),
    }  # fmt: skip
    x = images((32, 32))
    random = [kind for kind in vars(LAYERS) if kind.startswith("Random") and kind != "RandomCrop"]
    for kind in {*keras_model.IDENTITY_LAYERS, *random} - {"InputLayer"}:
        layer = getattr(LAYERS, kind)(*arguments.get(kind, ()))
        np.testing.assert_array_equal(layer(x, **training_off(layer)), x, err_msg=kind)


def training_off(layer):
    return {"training": False} if layer._call_has_training_arg else {}


def test_operations_of_keras_2_are_understood():
    """1 - (x - [1, 2, 3]) * 2 / 255, as TensorFlow 2.4 to 2.15 write it."""
    calls = (
        ("cast", [["input_1", 0, 0, {"dtype": "float32"}]], "cast"),
        ("math.subtract", [["cast", 0, 0, {"y": [1, 2, 3], "name": None}]], "minus"),
        ("math.multiply", [["minus", 0, 0, {"y": 2, "name": None}]], "times"),
        ("math.truediv", [["times", 0, 0, {"y": 255, "name": None}]], "divided"),
        ("math.subtract", [["_CONSTANT_VALUE", -1, 1, {"y": ["divided", 0, 0]}]], "last"),
    )
    layers = [
        {
            "class_name": "InputLayer", "name": "input_1", "inbound_nodes": [],
            "config": {"batch_input_shape": [None, 32, 48, 3], "name": "input_1"},
        },
        *(
            {
                "class_name": "TFOpLambda", "name": name, "inbound_nodes": nodes,
                "config": {"name": name, "function": function},
            }
            for function, nodes, name in calls
        ),
    ]  # fmt: skip
    model = {
        "layers": layers,
        "input_layers": [["input_1", 0, 0]],
        "output_layers": [["last", 0, 0]],
    }
    graph = keras_graph.read(json.dumps({"class_name": "Functional", "config": model}))
    chain = keras_model.walk_back(graph.output, None)
    changes, size = keras_model.read_pixels(chain, {})
    assert size == (32, 48)
    x = images((32, 48))
    expected = 1 - (x - np.array([1, 2, 3])) * 2 / 255
    preprocess = dataclasses.replace(SLIM, **changes)
    np.testing.assert_allclose(preprocess(x), expected, atol=1e-5)


@pytest.fixture(scope="module")
def backbones():
    keras.utils.set_random_seed(0)
    shape = (SIZE, SIZE, 3)
    v1 = keras.applications.MobileNet(
        alpha=0.25, weights=None, include_top=False, input_shape=shape
    )
    return {"MobileNetV2": v2(0.35, include_top=False), "MobileNet": randomized(v1)}


def pooled(x):
    return LAYERS.GlobalAveragePooling2D()(x)


HEADS = {
    "a pool over the map": lambda x: LAYERS.Dense(3)(
        LAYERS.Flatten()(LAYERS.AveragePooling2D(3)(x))
    ),
    "a pool that keeps its sides": lambda x: LAYERS.Dense(3)(
        LAYERS.Flatten()(LAYERS.GlobalAveragePooling2D(keepdims=True)(x))
    ),
    "a row": lambda x: LAYERS.Flatten()(
        LAYERS.Dense(3)(LAYERS.Reshape((-1, x.shape[-1]))(pooled(x)))
    ),
    "shapes and a convolution": lambda x: LAYERS.Reshape((3,))(
        LAYERS.Conv2D(3, 1)(LAYERS.Reshape((1, 1, x.shape[-1]))(pooled(x)))
    ),
    "batch norm first": lambda x: LAYERS.Dense(3)(LAYERS.BatchNormalization()(pooled(x))),
    "batch norm before an activation": lambda x: LAYERS.Dense(3, "softmax")(
        LAYERS.ReLU(6)(LAYERS.BatchNormalization()(LAYERS.Dense(8, use_bias=False)(pooled(x))))
    ),
    "batch norm after an activation": lambda x: LAYERS.Dense(5, "sigmoid", name="predictions")(
        LAYERS.BatchNormalization(scale=False)(LAYERS.Dense(8, "relu")(pooled(x)))
    ),
    "batch norm last": lambda x: LAYERS.Softmax()(
        LAYERS.BatchNormalization(center=False)(LAYERS.Dense(3)(LAYERS.Dropout(0.1)(pooled(x))))
    ),
    "batch norm after the last activation": lambda x: LAYERS.BatchNormalization()(
        LAYERS.Dense(4, "tanh")(pooled(x))
    ),
    "a nested model": lambda x: keras.Sequential(
        [LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(8, "gelu"), LAYERS.Dense(3)]
    )(x),
}


NETWORKS = (("MobileNetV2", ".keras"), ("MobileNet", ".h5"))


@pytest.mark.parametrize(
    ("name", "network", "suffix"),
    [
        *((name, *NETWORKS[i % 2]) for i, name in enumerate(HEADS)),
        ("shapes and a convolution", *NETWORKS[1]),  # which asks for the number of channels
    ],
)
def test_a_head_computes_the_same(tmp_path, backbones, name, network, suffix):
    backbone = backbones[network]
    maps = keras.Input(backbone.output.shape[1:])
    head = randomized(keras.Model(maps, HEADS[name](maps)))
    inputs = keras.Input((SIZE, SIZE, 3))
    keras.Model(inputs, head(backbone(inputs))).save(tmp_path / f"model{suffix}")
    contents = keras_reader.read(tmp_path / f"model{suffix}")
    assert contents.names.keys() >= {n for n in contents.arrays if "classifier" not in n}
    x = np.random.default_rng(0).uniform(0, 3, (2, *maps.shape[1:])).astype(np.float32)
    expected = output_of(head, x)
    ours = x.mean((1, 2))
    for i, (_, activation) in enumerate(contents.head or ((3, "linear"),)):
        module = f"params/dense_{i}" if contents.head else "params/classifier"
        ours = ours @ contents.arrays[f"{module}/kernel"] + contents.arrays[f"{module}/bias"]
        ours = ACTIVATIONS[activation](ours)
    if contents.usage.output == "sigmoid":
        ours = jax.nn.sigmoid(ours)
    assert_same(ours, expected)


REFUSED_HEADS = {
    "GlobalMaxPooling2D": lambda x: LAYERS.Dense(3)(LAYERS.GlobalMaxPooling2D()(x)),
    "Concatenate": lambda x: LAYERS.Dense(3)(
        LAYERS.Concatenate()([LAYERS.GlobalMaxPooling2D()(x), pooled(x)])
    ),
    "Flatten": lambda x: LAYERS.Dense(3)(LAYERS.Flatten()(x)),
    "AveragePooling2D": lambda x: LAYERS.Dense(3)(LAYERS.Flatten()(LAYERS.AveragePooling2D(2)(x))),
    "LayerNormalization": lambda x: LAYERS.Dense(2)(LAYERS.LayerNormalization()(pooled(x))),
    "LeakyReLU": lambda x: LAYERS.Dense(3)(LAYERS.LeakyReLU()(LAYERS.Dense(8)(pooled(x)))),
    "Reshape": lambda x: LAYERS.Flatten()(LAYERS.Dense(3)(LAYERS.Reshape((-1, 1))(pooled(x)))),
    "without a dense layer": lambda x: LAYERS.BatchNormalization()(pooled(x)),
    "2 outputs": lambda x: [LAYERS.Dense(3)(pooled(x)), LAYERS.Dense(3)(pooled(x))],
}


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_a_head_that_would_compute_something_else_is_refused_by_name(backbones, name):
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = REFUSED_HEADS[name](backbones["MobileNetV2"](inputs))
    model = keras.Model(inputs, outputs)
    read = functools.partial(keras_model.read, network="mobilenet_v2", names=(), need_head=True)
    with pytest.raises(UserError, match=f"{name}.* not supported"):
        read(keras_graph.read(model.to_json()), tensors=tensors_of(model), path=Path("FILE"))


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("block_3_depthwise", "strides", [1, 1], r"block_3_depthwise.*strides \[1, 1\], not 2"),
        ("block_3_depthwise_BN", "epsilon", 1e-5, "block_3_dep.* epsilon 1e-05, not 0.001"),
        ("block_3_depthwise_relu", "max_value", None, "block_3_depthwise_relu.* is not ReLU6"),
        ("out_relu", "kind", "Dropout", "has 35 ReLU6, not 34"),
        ("Conv_1_bn", "name", "mine", "holds no .* 17 from Conv1 to Conv_1_bn"),
    ],
)
def test_a_changed_network_is_refused(name, field, value, message, backbones):
    graph = keras_graph.read(backbones["MobileNetV2"].to_json())
    layer = next(layer for layer in graph.layers if layer.name == name)
    if field in ("name", "kind"):
        setattr(layer, field, value)
    else:
        layer.config[field] = value
    with pytest.raises(UserError, match=message):
        keras_model.read(graph, "mobilenet_v2", {}, (), Path("FILE"), True)


@pytest.mark.parametrize("layer", ["Resizing", "nearest", "UpSampling2D"])
def test_a_model_that_resizes_itself_sees_the_same_pictures(tmp_path, backbones, layer):
    resize = {
        "Resizing": lambda: LAYERS.Resizing(SIZE, SIZE),
        "nearest": lambda: LAYERS.Resizing(SIZE, SIZE, interpolation="nearest"),
        "UpSampling2D": lambda: LAYERS.UpSampling2D(3, interpolation="bilinear"),
    }[layer]()
    any_size = layer == "nearest"
    inputs = keras.Input((None, None, 3) if any_size else (32, 32, 3))
    x = LAYERS.Rescaling(1 / 255)(resize(inputs))
    outputs = LAYERS.Dense(3)(pooled(backbones["MobileNetV2"](x)))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    contents = keras_reader.read(tmp_path / "model.keras")
    assert contents.usage.image_size == (SIZE, SIZE)
    picture = np.random.default_rng(0).uniform(0, 255, (50, 60, 3) if any_size else (32, 32, 3))
    ours = contents.usage.preprocess.view_of((SIZE, SIZE), 3)(picture.astype(np.uint8))
    expected = resize(picture.astype(np.uint8).astype(np.float32)[None])[0]
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_a_model_of_tensorflow_js_has_the_arrays_of_keras(tmp_path, backbones):
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = LAYERS.Dense(3, "softmax")(pooled(backbones["MobileNetV2"](inputs / 255)))
    theirs = keras.Model(inputs, outputs)
    theirs.save(tmp_path / "model.h5")
    specs, content = [], b""
    for variable in theirs.weights:
        name = "/".join(variable.path.split("/")[-2:])
        array = variable.numpy()
        spec = {"name": name, "shape": list(array.shape), "dtype": "float32"}
        if name == "block_3_expand/kernel":  # of 8 bits
            low, high = float(array.min()), float(array.max())
            scale = (high - low) / 255
            spec["quantization"] = {"dtype": "uint8", "scale": scale, "min": low}
            array = np.round((array - low) / scale).astype(np.uint8)
        content += array.tobytes()
        specs.append(spec)
    half = len(content) // 2
    (tmp_path / "a.bin").write_bytes(content[:half])
    (tmp_path / "b.bin").write_bytes(content[half:])
    manifest = [{"paths": ["a.bin", "b.bin"], "weights": specs}]
    topology = {"model_config": json.loads(theirs.to_json())}
    model = {"modelTopology": topology, "weightsManifest": manifest}
    (tmp_path / "model.json").write_text(json.dumps(model))
    ours, same = (keras_reader.read(tmp_path / name) for name in ("model.json", "model.h5"))
    assert ours.usage == same.usage
    assert ours.arrays.keys() == same.arrays.keys()
    for name, array in same.arrays.items():
        tolerance = scale if name == "params/block_3/expand/kernel" else 0
        np.testing.assert_allclose(ours.arrays[name], array, rtol=0, atol=tolerance, err_msg=name)
    (tmp_path / "b.bin").write_bytes(content[half:-8])
    with pytest.raises(UserError, match=r"cannot read .*model.json: buffer is smaller"):
        pretrained.load(tmp_path / "model.json")
