"""Checkpoints are written as slim writes them, with weights for which Keras computes the logits."""

import re
import shutil

import jax
import numpy as np
import pytest
import tensorflow as tf

from mnv2 import pretrained
from mnv2.pretrained import slim
from mnv2.runtime.errors import UserError
from tests import outputs

keras = pytest.importorskip("keras")

SIZE = 96
CLASSES = 1001
WIDTHS = {"MobileNet": 0.25, "MobileNetV2": 0.35}
KERAS_TO_SLIM = {
    r"Conv1": "MobilenetV2/Conv",
    r"Conv_1": "MobilenetV2/Conv_1",
    r"expanded_conv_(\w+)": r"MobilenetV2/expanded_conv/\1",
    r"block_(\d+)_(\w+)": r"MobilenetV2/expanded_conv_\1/\2",
    r"predictions": "MobilenetV2/Logits/Conv2d_1c_1x1",
    r"conv1": "MobilenetV1/Conv2d_0",
    r"conv_dw_(\d+)": r"MobilenetV1/Conv2d_\1_depthwise",
    r"conv_pw_(\d+)": r"MobilenetV1/Conv2d_\1_pointwise",
    r"conv_preds": "MobilenetV1/Logits/Conv2d_1c_1x1",
}


def scope_of(layer):
    name = re.sub("^bn_|_bn$|_BN$", "", layer)
    (match,) = filter(None, (re.fullmatch(pattern, name) for pattern in KERAS_TO_SLIM))
    return match.expand(KERAS_TO_SLIM[match.re.pattern]) + "/BatchNorm" * (name != layer)


def slim_variables(model):
    random = np.random.default_rng(0)
    found = {}
    for layer in model.layers:
        if not layer.weights:
            continue
        scope = scope_of(layer.name)
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape[0]
            gamma, beta, mean = random.normal([1, 0, 0], [0.1, 0.1, 0.2], (size, 3)).T
            layer.set_weights([gamma, beta, mean, random.uniform(0.5, 2, size)])
            names = ("gamma", "beta", "moving_mean", "moving_variance")
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            names = ("depthwise_weights",)
        else:
            names = ("weights", "biases")
        for name, array in zip(names, layer.get_weights(), strict=False):
            if "Logits" in scope and name == "weights":
                array = array.reshape(1, 1, *array.shape[-2:])
            found[f"{scope}/{name}"] = array
    return found


def write_checkpoint(prefix, variables, averages=True):
    """With `averages`, writes the right values as averages, and wrong values as variables."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        named = {"global_step": np.array(7, np.int64)}
        for name, array in variables.items():
            if averages and "moving" not in name:
                named[f"{name}/ExponentialMovingAverage"] = array
                named[name] = named[f"{name}/RMSProp"] = np.full_like(array, 0.5)
            else:
                named[name] = array
        tensors = {
            name: tf.compat.v1.get_variable(name.replace("/", "_"), initializer=array)
            for name, array in named.items()
        }
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(tensors).save(session, str(prefix), write_state=False)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slim")
    images = np.random.default_rng(1).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    made = {}
    for network, width in WIDTHS.items():
        model = getattr(keras.applications, network)(
            alpha=width, weights=None, classes=CLASSES, input_shape=(SIZE, SIZE, 3)
        )
        (bias,) = (x for x in model.weights if x.path.endswith("/bias"))  # of the classifier
        bias.assign(np.random.default_rng(2).normal(size=CLASSES))
        variables = slim_variables(model)
        (folder / network).mkdir()
        write_checkpoint(folder / network / "model.ckpt-7", variables)
        expected = np.asarray(model(images / 127.5 - 1, training=False))  # not compiled
        made[network] = (folder / network, images, expected, variables)
    return made


@pytest.mark.parametrize("network", ["MobileNet", "MobileNetV2"])
def test_averaged_variables_give_keras_logits(checkpoints, network):
    folder, images, expected, _ = checkpoints[network]
    for path in (folder, folder / "model.ckpt-7", folder / "model.ckpt-7.index"):
        loaded = pretrained.load(path)
        assert (loaded.model.width, loaded.num_classes) == (WIDTHS[network], CLASSES)
        assert loaded.class_names[:2] == ("background", "tench")
    logits = outputs.of_loaded(loaded, images)
    expected = np.log(expected)
    spread = np.abs(expected - expected.mean()).max()  # all classes are nearly as probable
    np.testing.assert_allclose(jax.nn.log_softmax(logits), expected, rtol=0, atol=1e-3 * spread)
    dropped = pretrained.load(folder, drop_background=True)
    assert dropped.num_classes == 1000
    assert dropped.class_names[0] == "tench"
    assert dropped.model == loaded.model.clone(num_classes=1000)
    classifier = loaded.variables["params"].pop("classifier")
    without = dropped.variables["params"].pop("classifier")
    np.testing.assert_array_equal(without["kernel"], classifier["kernel"][:, 1:])
    np.testing.assert_array_equal(without["bias"], classifier["bias"][1:])
    jax.tree.map(np.testing.assert_array_equal, dropped.variables, loaded.variables)


def test_incomplete_unknown_and_damaged_checkpoints_are_rejected_in_one_line(checkpoints, tmp_path):
    variables = dict(checkpoints["MobileNetV2"][3])
    kernel = variables.pop("MobilenetV2/expanded_conv_3/expand/weights")
    write_checkpoint(tmp_path / "lacking", variables, averages=False)
    with pytest.raises(UserError, match=r"lacks MobilenetV2/expanded_conv_3/expand/weights$"):
        pretrained.load(tmp_path / "lacking")
    write_checkpoint(tmp_path / "other", {"resnet/weights": kernel}, averages=False)
    with pytest.raises(UserError, match="holds no MobileNet or MobileNetV2 of slim"):
        pretrained.load(tmp_path / "other")
    for data in tmp_path.glob("lacking.data*"):
        data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot read .*lacking"):
        pretrained.load(tmp_path / "lacking")


def write_graph(path, constants, epsilon=0.001):
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (None, SIZE, SIZE, 3), "input")
        for name, array in constants.items():
            tf.constant(array, tf.float32, name=name)
        tf.constant([0, 1], name="MobilenetV2/Logits/axes")
        x = tf.compat.v1.placeholder(tf.float32, (None, None, None, 1), "x")
        tf.compat.v1.nn.fused_batch_norm(x, [1.0], [0.0], [0.0], [1.0], epsilon, is_training=False)
        path.write_bytes(graph.as_graph_def().SerializeToString())


@pytest.mark.parametrize("network", ["MobileNet", "MobileNetV2"])
def test_a_frozen_graph_has_the_arrays_of_its_checkpoint(checkpoints, tmp_path, network):
    folder, _, _, variables = checkpoints[network]
    write_graph(tmp_path / "frozen.pb", {f"module/{name}": x for name, x in variables.items()})
    contents = slim.read(tmp_path / "frozen.pb")
    expected = slim.read(folder / "model.ckpt-7").arrays
    assert contents.arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(contents.arrays[name], array)
    assert contents.usage.image_size == (SIZE, SIZE)


def test_a_retrained_graph_has_its_own_classes(checkpoints, tmp_path):
    variables = dict(checkpoints["MobileNetV2"][3])
    random = np.random.default_rng(0)
    head = {
        "final_retrain_ops/weights/final_weights": random.normal(size=(1280, 3)),
        "final_retrain_ops/biases/final_biases": random.normal(size=3),
    }
    write_graph(tmp_path / "retrained.pb", variables | head)
    loaded = pretrained.load(tmp_path / "retrained.pb")
    assert (loaded.num_classes, loaded.class_names, loaded.preprocess.crop) == (3, None, 1.0)
    for ours, theirs in zip(("kernel", "bias"), head.values(), strict=True):
        np.testing.assert_allclose(loaded.variables["params"]["classifier"][ours], theirs)


def test_a_graph_that_computes_something_else_is_refused_in_one_line(checkpoints, tmp_path):
    variables = dict(checkpoints["MobileNetV2"][3])
    path = tmp_path / "graph.pb"
    write_graph(path, variables | {"mine/kernel": np.ones((3, 4))})
    with pytest.raises(UserError, match=r"constant mine/kernel of shape \(3, 4\)"):
        pretrained.load(path)
    write_graph(path, variables, epsilon=0.01)
    with pytest.raises(UserError, match=r"has the epsilon 0.01, not 0.001"):
        pretrained.load(path)
    path.write_bytes(b"no graph at all")
    with pytest.raises(UserError, match=r"cannot read .*graph.pb: "):
        pretrained.load(path)


def test_the_size_of_pictures_is_taken_from_the_name_of_a_checkpoint(checkpoints, tmp_path, capsys):
    folder = checkpoints["MobileNet"][0]
    assert slim.read(folder / "model.ckpt-7").usage.image_size == (224, 224)
    assert "224 x 224 assumed" in capsys.readouterr().err
    named = tmp_path / "mobilenet_v1_0.5_128"
    shutil.copytree(folder, named)
    assert slim.read(named / "model.ckpt-7").usage.image_size == (128, 128)


def test_a_depthwise_kernel_keeps_its_rows_and_columns():
    kernel = np.arange(18).reshape(3, 3, 2, 1)
    found = slim.tensorflow_layout("params/block_0/depthwise/kernel", kernel)
    np.testing.assert_array_equal(found, kernel.reshape(3, 3, 1, 2))
