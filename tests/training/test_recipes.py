"""Whole runs with everything that modern recipes add."""

import dataclasses

import pytest

from mnv2.pretrained import Preprocessing, native
from mnv2.runtime.errors import UserError
from mnv2.training.config import from_config
from mnv2.training.setup import set_up
from tests.deployment.networks import SHORT, network
from tests.training.test_loop import check_resumed


@pytest.fixture
def everything(tiny_config, tmp_path, fashion_mnist):
    """A run with several augmentations, a teacher, and pictures that grow for the test."""
    teacher = network(size=(32, 32), channels=1, classes=10, width=0.1, repeats=SHORT)
    named = dataclasses.replace(
        teacher, class_names=tuple(fashion_mnist.class_names), preprocess=Preprocessing()
    )
    native.write(tmp_path / "teacher.safetensors", named)
    tiny_config.data.update(
        {
            "image_size": 24,
            "train": "resized_crop|flip|erase(0.3)|label_noise(0.1)|mix(0.2, 1.0)",
            "repeats": 2,
            "evaluation": "resize_shorter(36)|center_crop(32)",
        }
    )
    tiny_config.update(
        {
            "teacher": str(tmp_path / "teacher.safetensors"),
            "batch_size": 32,  # mixing needs 4 pictures on a device for repeats of 2
            "accumulate": 2,
            "label_smoothing": 0.1,
            "ema_decay": 0.9,
        }
    )
    tiny_config.optimization.clip = 1.0
    return tiny_config


def test_a_killed_run_with_everything_on_ends_exactly_as_an_uninterrupted_one(
    everything, tmp_path, monkeypatch, few_test_pictures
):
    check_resumed(everything, tmp_path, monkeypatch)


def test_what_cannot_be_trained_or_would_do_nothing_is_refused(
    tiny_config, tmp_path, fashion_mnist
):
    def refused(**fields):
        tiny_config.update(fields)
        with pytest.raises(UserError) as error:
            set_up(from_config(tiny_config))
        return str(error.value)

    assert "accumulate must divide the 2 images" in refused(accumulate=3)
    tiny_config.data.train = "mix(0.2)"
    assert "needs 2 pictures or more on each device" in refused(batch_size=8)
    tiny_config.update(batch_size=16, accumulate=1)
    tiny_config.data.train = "distort_color"
    assert "those of fashion_mnist are gray" in refused()
    tiny_config.data.train = ""
    tiny_config.data.normalization = "imagenet"
    assert "is for colour pictures: use half" in refused()
    tiny_config.data.normalization = "half"
    assert "set --config.teacher FILE" in refused(accumulate=1, temperature=4.0)
    tiny_config.update(temperature=1.0)
    tiny_config.optimization.rate_every = "1 epochs"
    assert "set optimization.warmup_from" in refused()
    tiny_config.optimization.rate_every = "1 steps"
    teacher = network(classes=3, width=0.1, repeats=SHORT)
    native.write(tmp_path / "three.safetensors", teacher)
    message = refused(accumulate=1, teacher=str(tmp_path / "three.safetensors"))
    assert "knows 3 classes, fashion_mnist has 10" in message
    teacher = network(classes=10, width=0.1, repeats=SHORT)
    names = tuple(fashion_mnist.class_names)
    native.write(tmp_path / "colour.safetensors", dataclasses.replace(teacher, class_names=names))
    message = refused(teacher=str(tmp_path / "colour.safetensors"))
    assert "takes pictures with 3 channels, not 1" in message
    teacher = network(channels=1, classes=10, width=0.1, repeats=SHORT)
    unsure = dataclasses.replace(teacher, class_names=names, output="sigmoid")
    native.write(tmp_path / "unsure.safetensors", unsure)
    message = refused(teacher=str(tmp_path / "unsure.safetensors"))
    assert "must give a softmax over the classes" in message
    assert "no such file" in refused(teacher=str(tmp_path / "none.pth"))
