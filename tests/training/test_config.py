import pytest

from configs import finetune, v2_ablation
from mnv2.pretrained.preprocessing import NORMALIZATIONS
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note_once
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.training import config as fields
from mnv2.training.config import defaults, from_config


def refused(field, value):
    config = with_arms(v2_ablation.get_config("quick"))
    resolved = resolve(config, "linear")
    with resolved.unlocked():
        resolved.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as error:
        from_config(resolved)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "values"),
    {
        "seed": (-1, 2**32),
        "batch_size": (0, -8),
        "eval_batch_size": (0, -500),
        "duration": ("0 steps", "soon", "-1 epochs", "nan epochs", "5 parsecs", "", "1e308 epochs"),
        "eval_every": ("often", "-5 steps"),
        "checkpoint_every": ("inf steps",),
        "label_smoothing": (1.0, 1.5, -0.1, float("nan")),
        "final_split": ("train",),
        "on_nan": ("ignore",),
        "ema_decay": (1.0, 1.5, -0.5, float("inf")),
        "log_every": (0, -5),
        "data.on_broken": ("keep",),
        "data.validation": (-1,),
        "data.train": ("flop", "erase(2)", "flip|resize", "mix|flip", "mix(-0.2)", "flip("),
        "data.evaluation": ("flip", "resize_shorter", "center_crop(0)", "resized_crop"),
        "data.repeats": (0,),
        "data.normalization": ("torchvision",),
        "accumulate": (0,),
        "temperature": (0.0,),
        "label_weight": (1.5, -0.1),
        "weights": ("", " "),
        "teacher": ("", " "),
        "data.dir": ("", " "),
        "optimization.optimizer": ("sgd(", "sgd(0.9)", "optax.sgd"),
        "optimization.schedule": ("linear",),
        "optimization.learning_rate": (-0.1, float("nan"), float("inf")),
        "optimization.warmup": ("some steps",),
        "optimization.warmup_from": (1.5, -0.1),
        "optimization.rate_every": ("0 steps", "epoch"),
        "optimization.clip": (-1.0,),
        "optimization.weight_decay": (-1e-4, float("nan")),
        "optimization.weight_decay_on": ("(", "*kernel", ""),
        "optimization.norm_weight_decay": (-1e-4, float("inf")),
        "optimization.decay_rate": (0.0, -0.98),
        "optimization.decay_every": ("0 steps", "never"),
    }.items(),
)
def test_an_impossible_value_is_named_with_its_field(field, values):
    assert field in fields.FIELDS
    for value in values:
        assert field in refused(field, value), value


@pytest.mark.parametrize(
    ("group", "name", "nearest"),
    [
        ("", "lable_smoothing", "label_smoothing"),
        ("data", "validations", "data.validation"),
        ("optimization", "wieght_decay", "optimization.weight_decay"),
    ],
)
def test_an_unknown_field_of_a_config_file_is_refused_with_the_nearest_name(group, name, nearest):
    config = with_arms(v2_ablation.get_config())
    (config[group] if group else config)[name] = 0.1
    with pytest.raises(UserError, match=f"unknown field .*{name}: did you mean {nearest}"):
        from_config(config)


def test_a_size_of_pictures_is_a_whole_number_of_pixels():
    config = finetune.get_config()
    config.weights = "FILE"
    config.data.image_size = -8
    with pytest.raises(UserError, match=r"data.image_size must be a whole number, 1 to 4096"):
        from_config(resolve(config, "finetune"))


def test_every_field_has_a_check_and_a_default_that_passes_it():
    settings = from_config(defaults())
    assert settings.flat().keys() - fields.FIELDS.keys() == {f"model.{x}" for x in fields.MODEL}
    for name, field in fields.FIELDS.items():
        assert field.metadata["check"] is not None, name
        assert field.metadata["help"].endswith("."), name


def test_normalizations_are_those_of_the_package_that_has_them():
    with pytest.raises(UserError) as error:
        fields.FIELDS["data.normalization"].metadata["check"]("data.normalization", "?")
    found = str(error.value).partition("choose one of ")[2].split(", ")
    assert set(found) == set(NORMALIZATIONS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"optimization.decay_rate": 0.5},
            "optimization.decay_rate acts only with optimization.schedule exponential",
        ),
        (
            {"optimization.backbone_rate": 0.0, "optimization.norm_weight_decay": 0.0},
            "optimization.norm_weight_decay acts only with layers that are not frozen",
        ),
        ({"data.repeats": 4}, "data.repeats acts only with some operation"),
        ({}, ""),
    ],
)
def test_a_field_that_acts_only_with_another_one_is_named(capsys, changes, said):
    note_once.cache_clear()
    config = defaults()
    config.update_from_flattened_dict(changes)
    for _ in range(2):
        fields.note_what_does_nothing(from_config(config))
    lines = capsys.readouterr().err
    assert lines.count(said) == 1 if said else lines == ""
