"""Keras generates the weights and computes the logits; this package must compute the same."""

import json
import pickle

import h5py
import jax
import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.pretrained import keras as keras_reader
from mnv2.pretrained import keras_graph, keras_model, keras_pixels
from mnv2.pretrained.loaded import ACTIVATIONS
from mnv2.pretrained.slim import SLIM
from mnv2.runtime.errors import UserError
from tests import outputs
from tests.pretrained import gradients

keras = pytest.importorskip("keras")  # comes with TensorFlow

SIZE = 96


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


def randomized(model, shift=0.0):
    """Sets random variables in batch norm, also its statistics, which Keras leaves at 0 and 1."""
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            gamma, beta, mean = random.normal([1, shift, 0], [0.1, 0.1, 0.2], (size, 3)).T
            learned = [gamma] * layer.scale + [beta] * layer.center
            layer.set_weights([*learned, mean, random.uniform(0.5, 2, size)])
    return model


def v2(alpha, **fields):
    fields = {"input_shape": (SIZE, SIZE, 3), "weights": None, **fields}
    return randomized(keras.applications.MobileNetV2(alpha=alpha, **fields))


def images(size=(SIZE, SIZE)):
    return np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype(np.float32)


def output_of(model, x):
    """Returns the output of Keras' network in evaluation, without compiling it."""
    return np.asarray(model(x, training=False))


def assert_same(ours, theirs):
    # With a top, Keras ends in a softmax: compare the logarithms of the probabilities.
    if np.allclose(theirs.sum(-1), 1, atol=1e-5):
        ours = jax.nn.log_softmax(ours)
        theirs = np.log(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


def assert_same_network(ours, theirs):
    """Compares everything about two loaded networks."""
    assert (ours.model, ours.preprocess, ours.image_size) == (
        theirs.model, theirs.preprocess, theirs.image_size
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_every_published_width_gives_keras_logits_from_every_format(tmp_path, alpha):
    theirs = v2(alpha, input_shape=(224, 224, 3))
    theirs.save(tmp_path / "model.keras")
    loaded, x = pretrained.load(tmp_path / "model.keras"), images((224, 224))
    assert (loaded.model.width, loaded.model.num_classes) == (alpha, 1000)
    assert_same(outputs.of_loaded(loaded, x), output_of(theirs, x / 127.5 - 1))
    theirs.save(tmp_path / "model.h5")
    theirs.save_weights(tmp_path / "model.weights.h5")
    for name in ("model.h5", "model.weights.h5"):
        assert_same_network(pretrained.load(tmp_path / name), loaded)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_mobilenet_v1_gives_keras_logits(tmp_path, alpha):
    theirs = randomized(
        keras.applications.MobileNet(
            alpha=alpha, input_shape=(SIZE, SIZE, 3), weights=None, classes=7
        )
    )
    theirs.save(tmp_path / "model.keras")
    loaded = pretrained.load(tmp_path / "model.keras")
    assert (loaded.model.width, loaded.model.num_classes) == (alpha, 7)
    assert_same(outputs.of_loaded(loaded, images()), output_of(theirs, images() / 127.5 - 1))
    theirs.save(tmp_path / "model.h5")
    assert_same_network(pretrained.load(tmp_path / "model.h5"), loaded)


def test_without_a_top_images_of_odd_size_give_keras_features(tmp_path):
    theirs = v2(0.5, include_top=False, pooling="avg", input_shape=(97, 131, 3))
    theirs.save(tmp_path / "model.h5")
    loaded = pretrained.load(tmp_path / "model.h5")
    x = images((97, 131))
    assert_same(outputs.of_loaded(loaded, x), output_of(theirs, x / 127.5 - 1))


def users_model(head, rescale=False):
    """Builds a user's model: MobileNetV2 without its top, global pooling, then layers `head`."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    if rescale:
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = v2(0.35, include_top=False)(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("rescale", [False, True])
def test_a_users_model_predicts_the_same(tmp_path, rescale):
    layers = keras.layers
    theirs = users_model([layers.Dropout(0.2), layers.Dense(3, "softmax", name="mine")], rescale)
    theirs.save(tmp_path / "model.keras")
    loaded = pretrained.load(tmp_path / "model.keras")
    assert (loaded.model.width, loaded.num_classes) == (0.35, 3)
    assert (loaded.image_size, loaded.class_names) == ((SIZE, SIZE), None)
    x = images()
    expected = output_of(theirs, x if rescale else x / 127.5 - 1)
    assert_same(outputs.of_loaded(loaded, x), expected)
    theirs.save(tmp_path / "model.h5")
    assert_same_network(pretrained.load(tmp_path / "model.h5"), loaded)


def test_a_head_of_several_dense_layers_predicts_the_same(tmp_path):
    layers = keras.layers
    theirs = users_model([layers.Dense(8, "relu"), layers.Dense(5, "tanh"), layers.Dense(4)])
    theirs.save(tmp_path / "model.keras")
    loaded = pretrained.load(tmp_path / "model.keras")
    assert loaded.num_classes == 4
    assert_same(outputs.of_loaded(loaded, images()), output_of(theirs, images() / 127.5 - 1))
    theirs.save(tmp_path / "model.h5")
    assert_same_network(pretrained.load(tmp_path / "model.h5"), loaded)


def test_a_head_with_another_layer_is_rejected_by_name(tmp_path):
    theirs = users_model([keras.layers.LayerNormalization(name="norm"), keras.layers.Dense(2)])
    theirs.save(tmp_path / "model.keras")
    with pytest.raises(UserError, match=r"layer 'norm' \(LayerNormalization\) is not supported"):
        pretrained.load(tmp_path / "model.keras")


def two_branches(features):
    layers = keras.layers
    pooled = (layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D())
    return layers.concatenate([layer(features) for layer in pooled])


@pytest.mark.parametrize(("suffix", "branches"), [(".h5", False), (".keras", True)])
def test_whatever_its_head_is_a_models_backbone_can_be_used(tmp_path, suffix, branches, capsys):
    backbone = v2(0.35, include_top=False, pooling=None)
    inputs = keras.Input((SIZE, SIZE, 3))
    features = backbone(keras.layers.Rescaling(1 / 255)(inputs))
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    after = two_branches(features) if branches else keras.layers.LayerNormalization()(pooled)
    keras.Model(inputs, keras.layers.Dense(2, "softmax")(after)).save(tmp_path / f"m{suffix}")
    with pytest.raises(UserError, match=r"is not supported|has several inputs|inputs"):
        pretrained.load(tmp_path / f"m{suffix}")
    loaded = pretrained.load_backbone(tmp_path / f"m{suffix}")
    assert "only the network before its head is used" in capsys.readouterr().err
    expected = backbone(images() / 255).numpy().mean((1, 2))
    assert_same(outputs.of_loaded(loaded, images()), expected)


@pytest.mark.parametrize("network", ["MobileNetV2", "MobileNet"])
def test_the_gradients_of_a_training_step_are_those_of_keras(tmp_path, network):
    """Uses batch statistics, not running ones; errors are within 1e-3 of the gradient's norm."""
    tf = pytest.importorskip("tensorflow")
    build = getattr(keras.applications, network)
    theirs = randomized(
        build(
            alpha=0.5, weights=None, classes=10, input_shape=(SIZE, SIZE, 3),
            classifier_activation=None, **({"dropout": 0.0} if network == "MobileNet" else {}),
        ),
        shift=gradients.SHIFT,
    )  # fmt: skip
    labels = np.array([3, 8])
    with tf.GradientTape() as tape:
        logits = theirs(images() / 127.5 - 1, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
        loss = tf.reduce_mean(losses)
    found = tape.gradient(loss, [v.value for v in theirs.trainable_variables])
    expected = {
        "/".join(v.path.split("/")[-2:]).replace("depthwise_kernel", "kernel"): gradient.numpy()
        for v, gradient in zip(theirs.trainable_variables, found, strict=True)
    }
    theirs.save(tmp_path / "model.h5")
    loaded = pretrained.load(tmp_path / "model.h5")
    names = keras_reader.read(tmp_path / "model.h5").names
    ours = gradients.training_gradients(loaded, loaded.preprocess(images()), labels)
    assert {names[f"params/{path}"] for path in ours} == expected.keys()
    for path, gradient in ours.items():
        same = keras_reader.tensorflow_layout(f"params/{path}", expected[names[f"params/{path}"]])
        scale = np.linalg.norm(expected[names[f"params/{gradients.reference_path(path)}"]])
        assert np.linalg.norm(gradient - same) < gradients.TOLERANCE * scale, path


@pytest.mark.parametrize("classes", [0, 1000])
@pytest.mark.parametrize("network", ["MobileNetV2", "MobileNet"])
def test_keras_computes_the_same_with_weights_saved_under_its_names(tmp_path, network, classes):
    build = getattr(keras.applications, network)
    fields = {"alpha": 0.5, "weights": None, "input_shape": (SIZE, SIZE, 3)}
    fields |= {} if classes else {"include_top": False, "pooling": "avg"}
    theirs = randomized(build(**fields))
    expected = output_of(theirs, images() / 127.5 - 1)
    theirs.save(tmp_path / "model.keras")
    pretrained.save(pretrained.load(tmp_path / "model.keras"), tmp_path / "w.h5", names="keras")
    again = build(**{**fields, "weights": None})
    again.load_weights(tmp_path / "w.h5")
    np.testing.assert_allclose(
        output_of(again, images() / 127.5 - 1), expected, rtol=1e-5, atol=1e-6
    )
    assert_same(outputs.of_loaded(pretrained.load(tmp_path / "w.h5"), images()), expected)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.h5"
    v2(0.35).save(path)
    return path


def test_missing_unexpected_and_misshapen_tensors_are_named(saved):
    with h5py.File(saved, "r+") as file:
        kernel = "model_weights/block_3_expand/block_3_expand/kernel"
        whole = file[kernel][()]
        del file[kernel]
    with pytest.raises(UserError, match=r"model.h5 lacks block_3_expand/kernel$"):
        pretrained.load(saved)
    with h5py.File(saved, "r+") as file:
        file[kernel] = whole[..., :-1]
    with pytest.raises(
        UserError, match=r"block_3_expand/kernel has shape .*47\) .*, expected .*48\)"
    ):
        pretrained.load(saved)
    with h5py.File(saved, "r+") as file:
        del file[kernel]
        file[kernel] = whole
        file["model_weights/block_17_expand/block_17_expand/kernel"] = whole
    with pytest.raises(UserError, match=r"has unexpected tensors: block_17_expand/kernel$"):
        pretrained.load(saved)


def test_an_h5_file_with_the_name_of_a_keras_file_is_read(saved):
    network = pretrained.load(saved)
    assert_same_network(pretrained.load(saved.rename(saved.with_name("model.keras"))), network)


def test_files_without_a_network_are_rejected_in_one_line(tmp_path, saved):
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(saved.read_bytes()[:100_000])
    pickled = tmp_path / "pickled.keras"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    empty = tmp_path / "empty"
    empty.mkdir()
    other = tmp_path / "other.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    for path, message in (
        (truncated, "cannot read .*truncated.h5"),
        (pickled, "cannot read .*pickled.keras: it is a pickle, but"),
        (other, "other.h5 holds no MobileNet or MobileNetV2"),
        (tmp_path / "none.h5", "no such file"),
        (empty, "is neither the folder of a run .* nor of a slim checkpoint"),
    ):
        with pytest.raises(UserError, match=message) as error:
            pretrained.load(path)
        assert "\n" not in str(error.value)


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
}  # fmt: skip


def scaling_of(model):
    """Returns the preprocessing of a model that has only layers before a network."""
    graph = keras_graph.read(model.to_json(), "FILE")
    tensors = {"/".join(v.path.split("/")[-2:]): v.numpy() for v in model.weights}
    chain = keras_model._walk_back(graph.output, None, "FILE")
    preprocess = keras_pixels.read(chain, graph.output, tensors, "FILE").preprocessing(SLIM)
    assert not tensors
    return preprocess


@pytest.mark.parametrize("name", SCALINGS)
def test_the_layers_before_a_network_scale_pixels_as_in_keras(name):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, SCALINGS[name](inputs))
    x = images((32, 32))
    expected = output_of(model, x)
    preprocess = scaling_of(model)
    assert not preprocess.assumed
    np.testing.assert_allclose(preprocess(x), expected, atol=1e-5 * np.abs(expected).max())


def test_a_lambda_of_preprocess_input_is_assumed_to_be_mobilenets():
    inputs = keras.Input((32, 32, 3))
    layer = LAYERS.Lambda(keras.applications.mobilenet_v2.preprocess_input)
    preprocess = scaling_of(keras.Model(inputs, layer(inputs)))
    assert (preprocess.mean, preprocess.std, preprocess.assumed) == ((0.5,), (0.5,), True)


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
    "multiply pixels by": lambda x: x * 0,
}


@pytest.mark.parametrize("kind", NOT_UNDERSTOOD)
def test_a_layer_before_a_network_that_is_not_understood_is_named(kind):
    inputs = keras.Input((32, 32, 3))
    with pytest.raises(UserError, match=rf"^FILE: .*{kind}.* not |{kind}.*no picture"):
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
    for kind in keras_pixels.IDENTITY_LAYERS - {"InputLayer", "RandomHeight", "RandomWidth"}:
        layer = getattr(LAYERS, kind)(*arguments.get(kind, ()))  # the two are only in Keras 2
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
    graph = keras_graph.read(json.dumps({"class_name": "Functional", "config": model}), "FILE")
    chain = keras_model._walk_back(graph.output, None, "FILE")
    pixels = keras_pixels.read(chain, graph.output, {}, "FILE")
    assert pixels.size == (32, 48)
    x = images((32, 48))
    expected = 1 - (x - np.array([1, 2, 3])) * 2 / 255
    np.testing.assert_allclose(pixels.preprocessing(SLIM)(x), expected, atol=1e-5)


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
    "a nested model": lambda x: keras.Sequential(
        [LAYERS.GlobalAveragePooling2D(), LAYERS.Dense(8, "gelu"), LAYERS.Dense(3)]
    )(x),
}


@pytest.mark.parametrize(("network", "suffix"), [("MobileNetV2", ".keras"), ("MobileNet", ".h5")])
@pytest.mark.parametrize("name", HEADS)
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
    for layer in contents.head:
        ours = ACTIVATIONS[layer.activation](ours @ layer.kernel + layer.bias)
    if contents.output == "sigmoid":
        ours = jax.nn.sigmoid(ours)
    assert_same(ours, expected)


REFUSED_HEADS = {
    "GlobalMaxPooling2D": lambda x: LAYERS.Dense(3)(LAYERS.GlobalMaxPooling2D()(x)),
    "Concatenate": lambda x: LAYERS.Dense(3)(
        LAYERS.Concatenate()([LAYERS.GlobalMaxPooling2D()(x), pooled(x)])
    ),
    "Flatten": lambda x: LAYERS.Dense(3)(LAYERS.Flatten()(x)),
    "AveragePooling2D": lambda x: LAYERS.Dense(3)(LAYERS.Flatten()(LAYERS.AveragePooling2D(2)(x))),
    "LeakyReLU": lambda x: LAYERS.Dense(3)(LAYERS.LeakyReLU()(LAYERS.Dense(8)(pooled(x)))),
    "Reshape": lambda x: LAYERS.Flatten()(LAYERS.Dense(3)(LAYERS.Reshape((-1, 1))(pooled(x)))),
    "ends in batch norm": lambda x: LAYERS.BatchNormalization()(LAYERS.Dense(3, "relu")(pooled(x))),
    "2 outputs": lambda x: [LAYERS.Dense(3)(pooled(x)), LAYERS.Dense(3)(pooled(x))],
}


@pytest.mark.parametrize("name", REFUSED_HEADS)
def test_a_head_that_would_compute_something_else_is_refused_by_name(tmp_path, backbones, name):
    inputs = keras.Input((SIZE, SIZE, 3))
    outputs = REFUSED_HEADS[name](backbones["MobileNetV2"](inputs))
    keras.Model(inputs, outputs).save(tmp_path / "model.keras")
    with pytest.raises(UserError, match=f"model.keras: .*{name}.* not supported"):
        keras_reader.read(tmp_path / "model.keras")


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_an_adapted_normalization_is_found_in_the_file(tmp_path, backbones, suffix):
    inputs, normalization = keras.Input((SIZE, SIZE, 3)), adapted()
    x = LAYERS.RandomFlip()(inputs)
    outputs = LAYERS.Dense(3)(pooled(backbones["MobileNetV2"](normalization(x / 255 * 255))))
    keras.Model(inputs, outputs).save(tmp_path / f"model{suffix}")
    loaded = pretrained.load(tmp_path / f"model{suffix}")
    np.testing.assert_allclose(loaded.preprocess(images()), normalization(images()), atol=1e-5)
    assert not loaded.preprocess.assumed


def test_a_changed_network_is_refused(tmp_path):
    theirs = v2(0.35)
    for layer, field, value, message in (
        ("block_3_depthwise", "strides", [1, 1], r"strides \[1, 1\], not 2"),
        ("block_3_depthwise_BN", "epsilon", 1e-5, "epsilon 1e-05, not 0.001"),
        ("block_3_depthwise_relu", "max_value", None, "is not ReLU6"),
    ):
        config = theirs.get_config()
        next(x for x in config["layers"] if x["config"]["name"] == layer)["config"][field] = value
        if field == "strides":  # Keras does not build it; a file can tell it
            text = json.dumps({"class_name": "Functional", "config": config}, default=str)
        else:
            text = keras.Model.from_config(config).to_json()
        tensors = {"Conv1/kernel": np.zeros(1)}
        with pytest.raises(UserError, match=f"{layer}.*{message}"):
            keras_model.read(keras_graph.read(text, "FILE"), tensors, SLIM, "FILE")


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
    assert contents.image_size == (SIZE, SIZE)
    picture = np.random.default_rng(0).uniform(0, 255, (50, 60, 3) if any_size else (32, 32, 3))
    ours = contents.preprocess.crop_and_resize(picture.astype(np.uint8), (SIZE, SIZE))
    expected = resize(picture.astype(np.uint8).astype(np.float32)[None])[0]
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_the_size_of_pictures_is_taken_from_the_name_of_a_published_file(saved, capsys):
    with h5py.File(saved, "r+") as file:
        del file.attrs["model_config"]
    published = saved.rename(saved.with_name("mobilenet_v2_tf_kernels_0.35_160_no_top.h5"))
    assert keras_reader.read(published).image_size == (160, 160)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"note: {published} does not tell the size of its pictures: 160 x 160" in line
    unknown = published.rename(saved.with_name("mine.h5"))
    assert keras_reader.read(unknown).image_size == (224, 224)
    assert "224 x 224 assumed" in capsys.readouterr().err


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
    assert ours.preprocess == same.preprocess
    assert ours.arrays.keys() == same.arrays.keys()
    for name, array in same.arrays.items():
        tolerance = scale if name == "params/block_3/expand/kernel" else 0
        np.testing.assert_allclose(ours.arrays[name], array, rtol=0, atol=tolerance, err_msg=name)
    np.testing.assert_array_equal(ours.head[0].kernel, same.head[0].kernel)
    (tmp_path / "b.bin").write_bytes(content[half:-8])
    with pytest.raises(UserError, match=r"cannot read .*model.json: ValueError"):
        pretrained.load(tmp_path / "model.json")
