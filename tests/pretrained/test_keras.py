"""Keras generates the weights and computes the logits; this package must compute the same."""

import dataclasses
import functools
import pickle
import shutil

import h5py
import jax
import numpy as np
import pytest

from mnv2 import pretrained
from mnv2.ops import PLAIN
from mnv2.pretrained import keras as keras_reader
from mnv2.runtime.errors import UserError
from tests import outputs
from tests.pretrained import gradients

keras = pytest.importorskip("keras")  # comes with TensorFlow

SIZE = 96


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


def randomized(model, shift=0.0):
    """Sets random variables in batch norm, also its statistics, which Keras leaves at 0 and 1.

    Kernels get He's scale. With that of Keras, the pictures hardly matter after many layers, and a
    network with another padding would pass.
    """
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            kernel, *bias = layer.get_weights()
            is_depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
            fan_in = np.prod(kernel.shape[: 2 if is_depthwise else 3])
            layer.set_weights([random.normal(0, np.sqrt(2 / fan_in), kernel.shape), *bias])
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.moving_mean.shape[0]
            gamma, beta, mean = random.normal([1, shift, 0], [0.1, 0.1, 0.2], (size, 3)).T
            learned = [gamma] * layer.scale + [beta] * layer.center
            layer.set_weights([*learned, mean, random.uniform(0.5, 2, size)])
    return model


def v2(alpha, **fields):
    fields = {"input_shape": (SIZE, SIZE, 3), "weights": None, **fields}
    return randomized(keras.applications.MobileNetV2(alpha=alpha, **fields))


@functools.cache
def narrow_backbone():
    """Returns the network without its top that is in the models of users, built once."""
    return v2(0.35, include_top=False)


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
    assert ours.class_names == theirs.class_names
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


@pytest.mark.parametrize(
    ("network", "alpha", "size", "classes"),
    [
        ("MobileNetV2", 1.4, (SIZE, SIZE), 1001),
        ("MobileNetV2", 0.5, (97, 131), 0),
        ("MobileNet", 0.25, (SIZE, SIZE), 1000),
    ],
)
def test_a_network_gives_keras_logits_from_every_format_and_is_saved_for_keras(
    tmp_path, network, alpha, size, classes
):
    build = getattr(keras.applications, network)
    fields = {"alpha": alpha, "weights": None, "input_shape": (*size, 3)}
    fields |= {"classes": classes} if classes else {"include_top": False, "pooling": "avg"}
    theirs, x = randomized(build(**fields)), images(size)
    expected = output_of(theirs, x / 127.5 - 1)
    theirs.save(tmp_path / "model.keras")
    loaded = pretrained.load(tmp_path / "model.keras")
    assert (loaded.model.width, loaded.model.num_classes) == (alpha, classes)
    assert_same(outputs.of_loaded(loaded, x), expected)
    theirs.save(tmp_path / "model.h5")
    pretrained.save(loaded, tmp_path / "ours.h5", names="keras")
    assert_same_network(pretrained.load(tmp_path / "model.h5"), loaded)
    ours = pretrained.load(tmp_path / "ours.h5")  # which does not tell the size
    assert_same_network(dataclasses.replace(ours, image_size=size), loaded)
    if size == (SIZE, SIZE):
        numbered = f"mobilenet_{SIZE}.weights.h5"  # in which only the name tells the size
        theirs.save_weights(tmp_path / numbered)
        assert_same_network(pretrained.load(tmp_path / numbered), loaded)
    again = build(**fields)
    again.load_weights(tmp_path / "ours.h5")
    np.testing.assert_allclose(output_of(again, x / 127.5 - 1), expected, rtol=1e-5, atol=1e-6)


def users_model(head, rescale):
    """Builds a user's model: MobileNetV2 without its top, global pooling, then layers `head`."""
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    if rescale:
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = narrow_backbone()(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    for layer in head:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize("several", [False, True])
def test_a_users_model_predicts_the_same(tmp_path, several):
    layers = keras.layers
    if several:
        head = [layers.Dense(8, "relu"), layers.Dense(5, "tanh"), layers.Dense(3)]
    else:
        head = [layers.Dropout(0.2), layers.Dense(3, "softmax", name="mine")]
    theirs = users_model(head, rescale=several)
    theirs.save(tmp_path / "model.keras")
    loaded = pretrained.load(tmp_path / "model.keras")
    backbone = loaded.model.backbone if several else loaded.model
    assert (backbone.width, loaded.num_classes) == (0.35, 3)
    assert (loaded.image_size, loaded.class_names) == ((SIZE, SIZE), None)
    x = images()
    assert_same(outputs.of_loaded(loaded, x), output_of(theirs, x if several else x / 127.5 - 1))
    theirs.save(tmp_path / "model.h5")
    assert_same_network(pretrained.load(tmp_path / "model.h5"), loaded)


def test_weights_without_their_model_have_its_view_and_variables_are_known(tmp_path, capsys):
    theirs, path = users_model([keras.layers.Dense(3)], False), tmp_path / "model.weights.h5"
    theirs.save(tmp_path / "model.keras")
    view = pretrained.load(tmp_path / "model.keras").preprocess
    theirs.save_weights(path)
    assert pretrained.load(path).preprocess == view
    assert "holds only weights: assumed that its classes" in capsys.readouterr().err
    for variable, named in (  # as with use_bias, and as in 8 bits
        ("depthwise_conv2d/vars/1", "expanded_conv_depthwise/vars/1"),
        ("dense/vars/2", "dense/vars/2"),
    ):
        with h5py.File(path, "r+") as file:
            before = f"{variable[:-1]}0"
            (first,) = (x for x, _ in keras_reader._datasets(file) if x.endswith(f"/{before}"))
            added = first.removesuffix(before) + variable
            file[added] = np.zeros(3, np.float32)
        with pytest.raises(
            UserError, match=rf"model.weights.h5: it has unexpected tensors: {named}$"
        ):
            pretrained.load(path)
        with h5py.File(path, "r+") as file:
            del file[added]


def two_branches(features):
    layers = keras.layers
    pooled = (layers.GlobalAveragePooling2D(), layers.GlobalMaxPooling2D())
    return layers.concatenate([layer(features) for layer in pooled])


@pytest.mark.parametrize(("suffix", "branches"), [(".h5", False), (".keras", True)])
def test_whatever_its_head_is_a_models_backbone_can_be_used(tmp_path, suffix, branches, capsys):
    backbone = narrow_backbone()
    inputs = keras.Input((SIZE, SIZE, 3))
    normalize = keras.layers.Normalization()
    normalize.adapt(images())
    features = backbone(normalize(inputs))
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    after = two_branches(features) if branches else keras.layers.LayerNormalization()(pooled)
    keras.Model(inputs, keras.layers.Dense(2, "softmax")(after)).save(tmp_path / f"m{suffix}")
    with pytest.raises(UserError, match=r"is not supported|has several inputs|inputs"):
        pretrained.load(tmp_path / f"m{suffix}")
    loaded = pretrained.load_backbone(tmp_path / f"m{suffix}")
    assert "only the network before its head is used" in capsys.readouterr().err
    expected = backbone(normalize(images())).numpy().mean((1, 2))
    assert_same(outputs.of_loaded(loaded, images()), expected)


def test_the_gradients_of_a_training_step_are_those_of_keras(tmp_path):
    """Uses batch statistics, not running ones; errors are within 1e-3 of the gradient's norm."""
    tf = pytest.importorskip("tensorflow")
    theirs = randomized(
        keras.applications.MobileNetV2(
            alpha=0.35, weights=None, classes=10, input_shape=(SIZE, SIZE, 3),
            classifier_activation=None,
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
    ours = gradients.training_gradients(loaded, loaded.preprocess(images()), labels, PLAIN)
    assert {names[f"params/{path}"] for path in ours} == expected.keys()
    for path, gradient in ours.items():
        same = keras_reader.tensorflow_layout(f"params/{path}", expected[names[f"params/{path}"]])
        scale = np.linalg.norm(expected[names[f"params/{gradients.reference_path(path)}"]])
        assert np.linalg.norm(gradient - same) < gradients.TOLERANCE * scale, path


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model.h5"
    v2(0.35).save(path)
    return path


@pytest.fixture
def saved(saved_once, tmp_path):
    """A copy that a test may change."""
    return shutil.copy(saved_once, tmp_path / "model.h5")


def test_the_file_has_the_names_of_missing_and_unexpected_tensors(saved):
    with h5py.File(saved, "r+") as file:
        layers = file["model_weights"]
        layers["block_17_expand/kernel"] = layers["block_3_expand/block_3_expand/kernel"][()]
    with pytest.raises(UserError, match=r"has unexpected tensors: block_17_expand/kernel$"):
        pretrained.load(saved)
    with h5py.File(saved, "r+") as file:
        del file["model_weights/block_3_expand"]
    with pytest.raises(UserError, match=r"model.h5: it lacks block_3_expand/kernel$"):
        pretrained.load(saved)


def test_an_h5_file_with_the_name_of_a_keras_file_is_read(saved):
    network = pretrained.load(saved)
    assert_same_network(pretrained.load(saved.rename(saved.with_name("model.keras"))), network)


def test_files_without_a_network_are_rejected_in_one_line(tmp_path, saved):
    truncated = tmp_path / "truncated.h5"
    truncated.write_bytes(saved.read_bytes()[:100_000])
    pickled = tmp_path / "pickled.keras"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    other = tmp_path / "other.h5"
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(other)
    for path, message in (
        (truncated, "cannot read .*truncated.h5"),
        (pickled, "cannot read .*pickled.keras: it is a pickle, but"),
        (other, "other.h5: it holds no MobileNet or MobileNetV2"),
    ):
        with pytest.raises(UserError, match=message) as error:
            pretrained.load(path)
        assert "\n" not in str(error.value)


def test_the_size_of_pictures_is_taken_from_the_name_of_a_published_file(saved, capsys):
    with h5py.File(saved, "r+") as file:
        del file.attrs["model_config"]
    published = saved.rename(saved.with_name("mobilenet_v2_tf_kernels_0.35_160_no_top.h5"))
    assert keras_reader.read(published).usage.image_size == (160, 160)
    (line,) = capsys.readouterr().err.splitlines()
    assert f"note: {published} does not tell the size of its pictures: 160 x 160" in line
    unknown = published.rename(saved.with_name("mine.h5"))
    assert keras_reader.read(unknown).usage.image_size == (224, 224)
    assert "224 x 224 assumed" in capsys.readouterr().err
