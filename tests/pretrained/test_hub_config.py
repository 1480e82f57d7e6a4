"""The files that transformers writes next to weights are followed. For logits: test_torch.py."""

import json

import pytest

from mnv2.preprocess.host import named_view
from mnv2.pretrained import hub_config
from mnv2.pretrained.infer import Usage
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError


def settings(tmp_path, config=None, preprocessor=None, network="mobilenet_v2"):
    for name, content in (("config", config), ("preprocessor_config", preprocessor)):
        if content is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return hub_config.of_transformers(tmp_path / "model.safetensors", network)


def test_without_configs_the_network_is_that_of_google_and_this_is_said(tmp_path, capsys):
    fields, usage = settings(tmp_path)
    assert (fields["padding"], fields["bn_epsilon"]) == ("same", 1e-3)
    assert usage == Usage(
        Preprocessing(named_view("bilinear", 0.875), (0.5,), (0.5,), assumed=True)
    )
    said = capsys.readouterr().err
    assert "has no config.json next to it: assumed the padding and epsilon of slim" in said
    assert "preprocessor_config.json does not tell how to prepare pictures" in said


def test_the_configs_tell_padding_epsilon_labels_size_and_pixels(tmp_path, capsys):
    config = {
        "model_type": "mobilenet_v2", "image_size": 96, "tf_padding": False,
        "layer_norm_eps": 1e-5, "expand_ratio": 6.0, "id2label": {"1": "dog", "0": "cat"},
        "problem_type": "multi_label_classification",
    }  # fmt: skip
    preprocessor = {
        "size": {"shortest_edge": 130}, "crop_size": {"height": 96, "width": 96}, "resample": 3,
        "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_resize": True,
        "rescale_factor": 0.00392156862745098,
    }  # fmt: skip
    fields, usage = settings(tmp_path, config, preprocessor)
    assert (fields["padding"], fields["bn_epsilon"], fields["expansion"]) == ("symmetric", 1e-5, 6)
    assert (usage.image_size, usage.class_names) == ((96, 96), ("cat", "dog"))
    assert usage.output == "sigmoid"
    assert "bicubic" in usage.preprocess.view
    assert (usage.preprocess.mean, usage.preprocess.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert int(96 / usage.preprocess.crop) == 130
    assert not capsys.readouterr().err


def test_the_shorter_side_is_exactly_that_of_the_config(tmp_path):
    """A quotient of two numbers may fall below a whole number by rounding."""
    for crop in (96, 128, 160, 192, 224):
        for shorter in range(crop, crop + 80, 7):
            usage = settings(tmp_path, None, {"size": shorter, "crop_size": crop})[1]
            assert int(crop / usage.preprocess.crop) == shorter


def test_labels_that_say_nothing_and_nulls_are_ignored(tmp_path):
    for labels in (None, {"0": "LABEL_0", "1": "LABEL_1"}, {"0": "cat", "2": "dog"}):
        config = {"id2label": labels, "image_size": None, "tf_padding": None}
        _, usage = settings(tmp_path, config)
        assert (usage.class_names, usage.image_size) == (None, (224, 224))


@pytest.mark.parametrize(
    ("config", "preprocessor", "problem"),
    [
        ({"output_stride": 16}, None, "output_stride = 16, but only 32"),
        ({"hidden_act": "swish"}, None, "hidden_act = 'swish', but only 'relu6'"),
        (None, {"do_normalize": False}, "do_normalize = False, but only True"),
        (None, {"rescale_factor": 1 / 127.5}, "rescale_factor = 0.0078.*, but only 1/255"),
    ],
)
def test_another_network_or_preprocessing_is_refused(config, preprocessor, problem, tmp_path):
    with pytest.raises(UserError, match=problem):
        settings(tmp_path, config, preprocessor)


def test_the_config_of_another_network_is_ignored_and_this_is_said(tmp_path, capsys):
    fields, usage = settings(tmp_path, {"model_type": "resnet", "image_size": 512})
    assert (fields["padding"], usage.image_size) == ("same", (224, 224))
    assert "is ignored: it describes resnet" in capsys.readouterr().err
