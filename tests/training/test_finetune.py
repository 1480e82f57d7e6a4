"""Training that starts from weights."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import finetune
from mnv2 import data, pretrained
from mnv2.models import create_model
from mnv2.runtime.errors import UserError
from mnv2.training import loop
from mnv2.training.config import from_config
from mnv2.training.evaluation import evaluate_weights
from mnv2.training.setup import initial_state, set_up
from mnv2.training.step import shard
from tests.variables import random_variables

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a narrow network of one block for coloured pictures of 7 classes."""
    model = create_model(
        "mobilenet_v2",
        width=0.1,
        repeats=(1, 0, 0, 0, 0, 0, 0),
        num_classes=7,
        strides="small",
        bn_momentum=0.5,
    )
    loaded = pretrained.Pretrained(
        model, random_variables(model), pretrained.Preprocessing(mean=MEAN, std=STD)
    )
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    pretrained.save(loaded, path)
    return str(path)


def config_for(weights, rate, start="weights"):
    config = finetune.get_config()
    config.weights, config.start = weights, start
    config.optimization.backbone_rate = rate
    config.optimization.weight_decay = 0.0
    config.data.image_size = 28
    config.data.train = ""
    config.data.validation = 500
    config.model.dropout = 0.0
    config.batch_size = 16
    return config


def start(config):
    """The setup of a run, and its state before the first step."""
    of_run = from_config(config)
    setup = set_up(of_run)
    return setup, initial_state(setup, of_run)


def first_batch(setup):
    return next(data.train_batches(setup.dataset, 16, seed=0, view=setup.train_view))


def after_a_step(config):
    """The state before and after one step on a batch of the data set."""
    setup, state = start(config)
    before = jax.device_get(state)
    batch = shard(first_batch(setup))
    state, _ = setup.steps.train(state, batch, jax.random.key(0), None)
    return before, jax.device_get(state)


def changes(before, after):
    return jax.tree.map(lambda a, b: b - a, before.params, after.params)


def test_it_starts_from_the_weights_with_a_new_classifier(weights, fashion_mnist):
    setup, before = start(config_for(weights, 0.25))
    batch = first_batch(setup)
    theirs = pretrained.load(weights).variables
    assert before.params["classifier"]["kernel"].shape == (1280, 10)
    ours = {k: v for k, v in before.params.items() if k != "classifier"}
    given = {k: v for k, v in theirs["params"].items() if k != "classifier"}
    jax.tree.map(np.testing.assert_array_equal, ours, given)
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, theirs["batch_stats"])
    # Gray pictures in three channels, normalised as the weights expect.
    assert batch["image"].shape == (16, 28, 28, 3)
    seen = setup.preprocess(batch["image"])
    black = -np.array(MEAN) / np.array(STD)
    np.testing.assert_allclose(np.min(seen, axis=(0, 1, 2)), black, rtol=1e-5)


def test_a_frozen_backbone_stays_exactly_as_it_was(weights, fashion_mnist):
    before, after = after_a_step(config_for(weights, 0.0))
    moved = changes(before, after)
    assert np.abs(moved.pop("classifier")["kernel"]).max() > 0
    assert all(np.all(change == 0) for change in jax.tree.leaves(moved))
    jax.tree.map(np.testing.assert_array_equal, before.batch_stats, after.batch_stats)


def test_the_backbone_moves_at_its_own_rate(weights, fashion_mnist):
    slow, fast = (changes(*after_a_step(config_for(weights, rate))) for rate in (0.25, 1.0))
    assert np.abs(fast["stem"]["kernel"]).max() > 1e-4
    for name in fast:
        factor = 1.0 if name == "classifier" else 0.25
        jax.tree.map(
            lambda a, b, factor=factor: np.testing.assert_allclose(
                a, factor * b, rtol=1e-3, atol=1e-6
            ),
            slow[name],
            fast[name],
        )


def test_from_scratch_the_network_is_the_same_but_its_weights_are_new(weights, fashion_mnist):
    _, given = start(config_for(weights, 1.0))
    _, scratch = start(config_for(weights, 1.0, "scratch"))
    assert jax.tree.map(np.shape, given.params) == jax.tree.map(np.shape, scratch.params)
    assert np.abs(given.params["stem"]["kernel"] - scratch.params["stem"]["kernel"]).max() > 0.01


def write_pictures(folder):
    random = np.random.default_rng(0)
    for split, name, count in (
        *(("train", "ant", 9), ("train", "bee", 8)),
        *(("test", "ant", 7), ("test", "bee", 6)),
    ):
        place = folder / split / name
        place.mkdir(parents=True)
        for i in range(count):
            array = random.uniform(0, 255, (random.integers(30, 60), 40, 3)).astype(np.uint8)
            Image.fromarray(array).save(place / f"{i}.png")


def test_a_run_on_pictures_of_ones_own_is_loaded_from_its_folder(weights, tmp_path):
    write_pictures(tmp_path / "pictures")
    config = config_for(weights, 0.25)
    config.data.name = f"folder:{tmp_path / 'pictures'}"
    config.data.validation = 0
    config.duration = "4 steps"
    config.eval_every = config.checkpoint_every = "0 steps"
    result = loop.train(from_config(config), tmp_path / "run")
    loaded = pretrained.load(tmp_path / "run")
    assert loaded.class_names == ("ant", "bee")
    assert (loaded.image_size, loaded.preprocess.mean) == ((28, 28), MEAN)
    again = evaluate_weights(loaded, data.open_dataset(config.data.name), "test", 8)
    assert again.summary == pytest.approx(result["test"], rel=1e-4)
    assert again.confusion.sum(axis=1).tolist() == [7, 6]
    assert np.trace(again.confusion) == round(13 * again.summary["accuracy"])


def test_what_is_wrong_with_the_weights_is_one_clear_line(weights, fashion_mnist):
    for changed, message in (
        ({"weights": None}, "no weights given: set config.weights"),
        ({"weights": "none.h5"}, r"no such file: none.h5"),
        ({"start": "wieghts"}, "unknown start 'wieghts': did you mean 'weights'"),
    ):
        config = config_for(weights, 0.1)
        config.update(changed)
        with pytest.raises(UserError, match=message):
            set_up(from_config(config))


def test_a_second_phase_keeps_the_classifier_of_the_same_classes(
    weights, fashion_mnist, tmp_path, capsys
):
    """First the classifier alone, then all layers: the usual two phases."""
    loaded = pretrained.load(weights)
    model = loaded.model.clone(num_classes=10)
    classifier = {"kernel": np.full((1280, 10), 0.5, np.float32), "bias": np.arange(10.0)}
    params = {**loaded.variables["params"], "classifier": classifier}
    for names, kept in ((fashion_mnist.class_names, True), ([*"abcdefghij"], False)):
        path = tmp_path / f"{kept}.safetensors"
        trained = pretrained.Pretrained(
            model,
            {**loaded.variables, "params": params},
            loaded.preprocess,
            class_names=tuple(names),
        )
        pretrained.save(trained, path)
        of_run = from_config(config_for(str(path), 0.25))
        state = initial_state(set_up(of_run), of_run)
        assert np.array_equal(state.params["classifier"]["kernel"], classifier["kernel"]) == kept
        said = "its classifier is kept" if kept else "a new classifier for the 10 classes"
        assert f"{path}: {said}" in capsys.readouterr().out
