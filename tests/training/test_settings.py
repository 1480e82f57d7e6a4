import pytest

from configs import finetune, v2_ablation
from mnv2.runtime.errors import UserError
from mnv2.sweeps.plan import resolve, with_arms
from mnv2.training.config import from_config
from mnv2.training.checks import CHECKS


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
        "optimization.optimizer": ("sdg",),
        "optimization.schedule": ("linear",),
        "optimization.learning_rate": (-0.1, float("nan"), float("inf")),
        "optimization.warmup": ("some steps",),
        "optimization.warmup_from": (1.5, -0.1),
        "optimization.rate_every": ("0 steps", "epoch"),
        "optimization.clip": (-1.0,),
        "optimization.momentum": (1.0, -0.1),
        "optimization.weight_decay": (-1e-4, float("nan")),
        "optimization.weight_decay_on": ("(", "*kernel", ""),
        "optimization.norm_weight_decay": (-1e-4, float("inf")),
        "optimization.bias_weight_decay": (-1e-4, float("nan")),
        "optimization.decay_rate": (0.0, -0.98),
        "optimization.decay_every": ("0 steps", "never"),
        "optimization.rmsprop_decay": (1.0, 1.5),
        "optimization.epsilon": (0.0, -1.0),
        "model.dropout": (1.0, 1.5, -0.1),
        "model.bn_momentum": (1.0, 1.5, -0.1),
        "model.bn_epsilon": (0.0, -1e-3),
        "model.width": (0.0, -1.0, float("inf")),
        "model.expansion": (0.0, float("nan")),
        "model.dtype": ("int8", "float8", "half"),
    }.items(),
)
def test_an_impossible_value_is_named_with_its_field(field, values):
    assert field in CHECKS
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


@pytest.mark.parametrize("preset", v2_ablation.PRESETS)
def test_every_field_that_can_be_wrong_is_checked(preset):
    resolved = from_config(resolve(with_arms(v2_ablation.get_config(preset)), "linear"))
    free = {"data.name", "data.dir", "model.name", "weights", "teacher"}
    by_the_network = {
        f"model.{name}" for name in ("activation", "bottleneck", "shortcut", "block", "padding")
    }
    unchecked = resolved.flat().keys() - CHECKS.keys() - free - by_the_network
    assert unchecked == {"model.strides"}
