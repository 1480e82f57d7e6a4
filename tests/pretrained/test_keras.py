"""Keras generates the weights and computes the logits; this package must compute the same."""

import pickle

import h5py
import jax
import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.pretrained import keras as keras_reader
from mnv2.runtime.errors import UserError
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
            size = layer.gamma.shape[0]
            gamma, beta, mean = random.normal([1, shift, 0], [0.1, 0.1, 0.2], (size, 3)).T
            layer.set_weights([gamma, beta, mean, random.uniform(0.5, 2, size)])
    return model


def v2(alpha, **fields):
    fields = {"input_shape": (SIZE, SIZE, 3), "weights": None, **fields}
    return randomized(keras.applications.MobileNetV2(alpha=alpha, **fields))


def images(size=(SIZE, SIZE)):
    return np.random.default_rng(1).uniform(0, 255, (2, *size, 3)).astype(np.float32)


def model_output(loaded, x):
    return jax.jit(loaded.model.apply)(loaded.variables, loaded.preprocess(x))


def assert_same(ours, theirs):
    # With a top, Keras ends in a softmax: compare the logarithms of the probabilities.
    if np.allclose(theirs.sum(-1), 1, atol=1e-5):
        ours = jax.nn.log_softmax(ours)
        theirs = np.log(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize("suffix", [".h5", ".weights.h5", ".keras"])
@pytest.mark.parametrize("alpha", [0.35, 1.0, 1.4])
def test_mobilenet_v2_gives_keras_logits(tmp_path, alpha, suffix):
    theirs, path = v2(alpha), tmp_path / f"model{suffix}"
    (theirs.save_weights if suffix == ".weights.h5" else theirs.save)(path)
    loaded = pretrained.load(path)
    assert (loaded.model.width, loaded.model.num_classes) == (alpha, 1000)
    assert_same(model_output(loaded, images()), theirs.predict(images() / 127.5 - 1, verbose=0))


@pytest.mark.parametrize("alpha", [0.35, 0.5, 0.75, 1.0, 1.3, 1.4])
def test_every_published_width_gives_keras_logits_at_224(tmp_path, alpha):
    theirs = v2(alpha, input_shape=(224, 224, 3))
    theirs.save(tmp_path / "model.keras")
    loaded, x = pretrained.load(tmp_path / "model.keras"), images((224, 224))
    assert loaded.model.width == alpha
    assert_same(model_output(loaded, x), theirs.predict(x / 127.5 - 1, verbose=0))


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_mobilenet_v1_gives_keras_logits(tmp_path, alpha, suffix):
    theirs = keras.applications.MobileNet(
        alpha=alpha, input_shape=(SIZE, SIZE, 3), weights=None, classes=7
    )
    randomized(theirs).save(tmp_path / f"model{suffix}")
    loaded = pretrained.load(tmp_path / f"model{suffix}")
    assert (loaded.model.width, loaded.model.num_classes) == (alpha, 7)
    assert_same(model_output(loaded, images()), theirs.predict(images() / 127.5 - 1, verbose=0))


def test_without_a_top_images_of_odd_size_give_keras_features(tmp_path):
    theirs = v2(0.5, include_top=False, pooling="avg", input_shape=(97, 131, 3))
    theirs.save(tmp_path / "model.h5")
    loaded = pretrained.load(tmp_path / "model.h5")
    x = images((97, 131))
    assert_same(model_output(loaded, x), theirs.predict(x / 127.5 - 1, verbose=0))


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


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
@pytest.mark.parametrize("rescale", [False, True])
def test_a_users_model_predicts_the_same(tmp_path, suffix, rescale):
    layers = keras.layers
    theirs = users_model([layers.Dropout(0.2), layers.Dense(3, "softmax", name="mine")], rescale)
    theirs.save(tmp_path / f"model{suffix}")
    loaded = pretrained.load(tmp_path / f"model{suffix}")
    assert (loaded.model.width, loaded.num_classes) == (0.35, 3)
    assert (loaded.image_size, loaded.class_names) == ((SIZE, SIZE), None)
    x = images()
    expected = theirs.predict(x if rescale else x / 127.5 - 1, verbose=0)
    assert_same(model_output(loaded, x), expected)


@pytest.mark.parametrize("suffix", [".h5", ".keras"])
def test_a_head_of_several_dense_layers_predicts_the_same(tmp_path, suffix):
    layers = keras.layers
    theirs = users_model([layers.Dense(8, "relu"), layers.Dense(5, "tanh"), layers.Dense(4)])
    theirs.save(tmp_path / f"model{suffix}")
    loaded = pretrained.load(tmp_path / f"model{suffix}")
    assert loaded.num_classes == 4
    assert_same(model_output(loaded, images()), theirs.predict(images() / 127.5 - 1, verbose=0))


def test_a_head_with_another_layer_is_rejected_by_name(tmp_path):
    theirs = users_model([keras.layers.LayerNormalization(name="norm"), keras.layers.Dense(2)])
    theirs.save(tmp_path / "model.keras")
    with pytest.raises(UserError, match=r"layer 'norm' \(LayerNormalization\) is not supported"):
        pretrained.load(tmp_path / "model.keras")


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
    expected = theirs.predict(images() / 127.5 - 1, verbose=0)
    theirs.save(tmp_path / "model.keras")
    pretrained.save(pretrained.load(tmp_path / "model.keras"), tmp_path / "w.h5", names="keras")
    again = build(**{**fields, "weights": None})
    again.load_weights(tmp_path / "w.h5")
    np.testing.assert_allclose(
        again.predict(images() / 127.5 - 1, verbose=0), expected, rtol=1e-5, atol=1e-6
    )
    assert_same(model_output(pretrained.load(tmp_path / "w.h5"), images()), expected)


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


def test_files_without_a_network_are_rejected_in_one_line(tmp_path, saved):
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(saved.read_bytes()[:100_000])
    pickled = tmp_path / "pickled.keras"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    other = tmp_path / "other.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    for path, message in (
        (truncated, "cannot read .*truncated.h5"),
        (pickled, "cannot read .*pickled.keras: File is not a zip file"),
        (other, "other.h5 holds no MobileNet or MobileNetV2"),
        (tmp_path / "none.h5", "no such file"),
        (tmp_path, "is neither the folder of a run .* nor of a slim checkpoint"),
    ):
        with pytest.raises(UserError, match=message) as error:
            pretrained.load(path)
        assert "\n" not in str(error.value)
