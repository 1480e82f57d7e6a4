import pytest

from configs import finetune, v2_ablation
from mnv2.data.augment import DISTORTIONS, POLICIES, STRENGTHS
from mnv2.data.preprocess import AUGMENTATIONS, INTERPOLATIONS
from mnv2.pretrained.preprocessing import CROPPING, METHODS, NORMALIZATIONS
from mnv2.runtime.errors import UserError
from mnv2.runtime.terminal import note_once
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.training import config as fields
from mnv2.training.config import defaults, flat, from_config, of_old_fields


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
        "data.augmentation": ("crop",),
        "data.pad": (-1,),
        "data.crop_area": ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5)),
        "data.crop_aspect": ((0.0, 1.0), (2.0, 1.0), (1.0, 1e38)),
        "data.interpolation": ("lanczos",),
        "data.distortion": ("slow",),
        "data.policy": ("randaugment", "auto"),
        "data.policy_operations": (0, 1000),
        "data.policy_strength": (31, -1),
        "data.policy_interpolation": ("bicubic",),
        "data.policy_fill": (256, -1),
        "data.erasing": (1.1, -0.1),
        "data.repeats": (0,),
        "data.progressive": ((128,), (128, 0)),
        "data.normalization": ("torchvision",),
        "data.eval_method": ("torchvision",),
        "data.eval_crop": (0.0, 1.5),
        "data.eval_size": (0,),
        "mixup": (-0.2, 1e-46),
        "cutmix": (-1.0, float("nan")),
        "mix_until": ("later",),
        "accumulate": (0,),
        "temperature": (0.0,),
        "label_weight": (1.5, -0.1),
        "recalibrate": (-1,),
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
        "optimization.bias_weight_decay": (-1e-4, float("nan")),
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
        ("data", "crop_areas", "data.crop_area"),
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
    with pytest.raises(UserError, match=r"data.image_size must be a whole number, 1 or more"):
        from_config(resolve(config, "finetune"))


def test_every_field_has_a_check_and_a_default_that_passes_it():
    settings = from_config(defaults())
    assert settings.flat().keys() - fields.FIELDS.keys() == {f"model.{x}" for x in fields.MODEL}
    for name, field in fields.FIELDS.items():
        assert field.metadata["check"] is not None, name
        assert field.metadata["help"].endswith("."), name


def test_choices_are_those_of_the_packages_that_have_them():
    def choices(field):
        with pytest.raises(UserError) as error:
            fields.FIELDS[field].metadata["check"](field, "?")
        return set(str(error.value).partition("choose one of ")[2].split(", "))

    assert choices("data.augmentation") == set(AUGMENTATIONS)
    assert choices("data.interpolation") == set(INTERPOLATIONS)
    assert choices("data.distortion") == set(DISTORTIONS)
    assert choices("data.policy") == set(POLICIES)
    assert choices("data.normalization") == set(NORMALIZATIONS)
    assert choices("data.eval_method") == set(METHODS)
    cropping = fields.FIELDS["data.eval_crop"].metadata["acts_with"]
    for method in METHODS:
        config = defaults()
        config.data.eval_method = method
        assert cropping.holds(from_config(config)) == (method in CROPPING)
    fields.FIELDS["data.policy_strength"].metadata["check"]("strength", STRENGTHS - 1)


def test_a_field_that_is_gone_says_what_to_write():
    config = defaults()
    config.optimization.momentum = 0.5
    with pytest.raises(UserError, match=r"momentum is no field any more: write .*momentum=0.9"):
        from_config(config)


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ({"optimizer": "sgd", "momentum": 0.9, "nesterov": True}, fields.Optimization.optimizer),
        ({"optimizer": "sgd", "momentum": 0.9}, fields.Optimization.optimizer),
        (
            {"optimizer": "rmsprop", "momentum": 0.9, "rmsprop_decay": 0.9, "epsilon": 1.0},
            "rmsprop_tf(decay=0.9, momentum=0.9, eps=1.0)",
        ),
        ({"optimizer": "adamw", "momentum": 0.8}, "adamw(b1=0.8)"),
        ({"optimizer": "adamw(b2=0.95)"}, "adamw(b2=0.95)"),
    ],
)
def test_fields_of_earlier_versions_are_translated(old, now):
    found = of_old_fields(flat({"optimization": old}))
    assert found["optimization.optimizer"] == now
    assert not found.keys() & fields.GONE.keys()
    assert found["mixup"] == 0.0  # from before there was a field


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix_until": "10 steps"}, "mix_until acts only with mixup or cutmix"),
        ({"data.policy_strength": 20}, "data.policy_strength acts only with data.policy random"),
        (
            {"optimization.decay_rate": 0.5},
            "optimization.decay_rate acts only with optimization.schedule exponential",
        ),
        (
            {"mixup": 0.2, "mix_until": "0 steps"},
            "mixup acts only with a mix_until later than 0 steps",
        ),
        (
            {"optimization.backbone_rate": 0.0, "optimization.norm_weight_decay": 0.0},
            "optimization.norm_weight_decay acts only with layers that are not frozen",
        ),
        ({"data.repeats": 4}, "data.repeats acts only with some augmentation"),
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
