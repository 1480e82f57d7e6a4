"""The ablations of MobileNetV2: how much does each choice of the paper improve accuracy?

Five comparisons with one baseline (linear bottleneck, shortcut between bottlenecks, t = 6):

    bottleneck   linear or ReLU6                                     figure 6a
    shortcut     between bottlenecks, between expansions, none       figure 6b
    expansion    t = 1, 2, 4, 6, 8                                   section 6.4
    width        0.25, 0.35, 0.5, 0.75, 1.0                          section 6.1
    block        V2's block, V1's (with and without a shortcut) or ResNet's, at equal multiply-adds
                 and at equal parameters

Presets, with their cost and the expected result:

    configs/v2_ablation.py            Fashion-MNIST, 500 steps, width 0.35; linear and relu6 with 5
                                      seeds, shortcuts and blocks with 3, all other arms with 2.
                                      30 minutes on two CPU cores. Expect a top-1 accuracy of 84
                                      to 86 % for linear, 79 to 83 % for relu6, 87 % for width_1.
    configs/v2_ablation.py:quick      four arms, 30 steps each, to check that everything works.
                                      Two minutes.
    configs/v2_ablation.py:hour       every arm with 3 seeds, 1000 steps each. 80 minutes on two CPU
                                      cores. linear 86.9 %, relu6 83.7 %.
    configs/v2_ablation.py:full       Fashion-MNIST, 15 epochs with augmentation, 5 seeds of every
                                      arm, as for a publication. linear 92.4 %, relu6 91.3 %.
    configs/v2_ablation.py:tuned      each of six arms at the learning rate of the baseline, and at
                                      its own, which are chosen on validation with other seeds.
                                      84 minutes on two CPU cores. linear 85.3 %, relu6 81.3 %.
    configs/v2_ablation.py:eight_bits  the arms of experiments.paper.quantization: blocks, widths,
                                      ReLU or ReLU6 inside, V1 as a network; 500 steps, 5 seeds
                                      each. 33 minutes on two CPU cores. Expect 84.7 % for linear,
                                      84.4 % for relu_inside, 83.3 % for mobilenet_v1.
    configs/v2_ablation.py:cifar10    CIFAR-10, 100 epochs, width 0.5, 3 seeds. For one GPU.
    configs/v2_ablation.py:imagenet   ImageNet, 150 epochs, width 1.0, the paper's RMSProp, 1 seed.
                                      For eight GPUs or TPUs. In the paper the baseline has
                                      72.0 % top-1.

The authors of this file have not run the last three presets to their end, but for those
two arms.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
from ml_collections import config_dict

from mnv2.training.config import defaults

PRESETS = ("", "quick", "hour", "full", "tuned", "eight_bits", "cifar10", "imagenet")
LONG = ("full", "cifar10", "imagenet")  # they have more expansions and widths
_FIXED = ("expansion_shortcut", "no_shortcut", "separable", "hourglass")
_WIDE = ("t_1", "t_2", "t_4", "t_8", "width_0.25", "width_0.5", "width_0.75", "width_1")
# The arms of a preset that does not have all of them.
ARMS: dict[str, tuple[str, ...]] = {
    "": ("linear", "relu6", *_FIXED[:2], *_WIDE, *_FIXED[2:]),  # to end within half an hour
    "quick": ("linear", "relu6", "t_1", "width_0.25"),
    "tuned": ("linear", "relu6", *_FIXED),
    "eight_bits": (
        *("linear", "relu6", "relu_inside", "width_0.25", "width_1", "separable"),
        "mobilenet_v1",
    ),
}
# Arms that cost what the baseline does: what they change besides the width, and the cost.
EQUAL_COST: dict[str, tuple[dict[str, Any], str]] = {
    "separable": ({"model.block": "separable"}, "multiply_adds"),
    "hourglass": ({"model.block": "hourglass"}, "multiply_adds"),
    "separable_shortcut": ({"model.block": "separable_shortcut"}, "multiply_adds"),
    "separable_same_size": ({"model.block": "separable"}, "parameters"),
    "hourglass_same_size": ({"model.block": "hourglass"}, "parameters"),
    "mobilenet_v1": (  # with the resolutions of the baseline
        {
            "model.name": "mobilenet_v1",
            "model.strides": (2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1),
        },
        "multiply_adds",
    ),
}
# Their widths in a preset; `""` also stands for the presets that are not named.
WIDTHS = {
    "": (0.91, 0.79, 0.91, 0.72, 0.64, 0.28),
    "full": (0.97, 0.83, 0.97, 0.72, 0.64, 0.28),
    "cifar10": (1.38, 1.2, 1.38, 1.08, 0.97, 0.28),
    "imagenet": (2.38, 2.12, 2.38, 1.59, 1.49, 0.28),
}
# The number of seeds in a preset, and that of arms with another one. --config.seeds is for all.
SEEDS: dict[str, tuple[int, dict[str, int]]] = {
    "": (2, {"linear": 5, "relu6": 5, **dict.fromkeys(_FIXED, 3)}),
    "quick": (1, {"linear": 2, "relu6": 2}),
    "hour": (3, {}),
    "full": (5, {}),
    "tuned": (3, {"linear": 5, "relu6": 5}),
    "eight_bits": (5, {}),
    "cifar10": (3, {}),
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config of the sweep: the shared settings, and the changes of each arm."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS[1:])}")
    config = defaults()
    del config.seeds  # so that it can be empty
    config.seeds = config_dict.placeholder(int)  # default: those of the preset, by arm
    if preset == "hour":
        config.duration = "1000 steps"
        config.eval_every = config.checkpoint_every = "500 steps"
        config.optimization.warmup = "100 steps"
    elif preset == "full":
        config.duration = "15 epochs"
        config.eval_every = config.checkpoint_every = "1 epochs"
        config.data.update(train="pad_crop(2)|flip")
        config.model.update(strides=(1, 1, 1, 2, 2, 1, 2, 1), bn_momentum=0.99)
        config.optimization.warmup = "1 epochs"
    elif preset == "cifar10":
        config.data.update(name="cifar10", train="pad_crop(4)|flip")
        config.model.update(width=0.5, strides=(1, 1, 1, 2, 2, 1, 2, 1), bn_momentum=0.99)
        config.duration = "100 epochs"
        config.eval_every = config.checkpoint_every = "5 epochs"
        config.optimization.update(learning_rate=0.1, warmup="5 epochs", weight_decay=5e-4)
    elif preset == "imagenet":
        config.data.update(name="imagenet2012", validation=10_000, image_size=224)
        config.data.train = "inception_crop|flip|distort_color(fast=True)"
        config.model.update(width=1.0, strides=(2, 1, 2, 2, 2, 1, 2, 1), dropout=0.2)
        config.model.update(bn_momentum=0.997, dtype="bfloat16")
        config.batch_size = 768  # 96 per device on eight; 116 MB per batch of images
        config.eval_batch_size = 1000
        config.update(duration="150 epochs", label_smoothing=0.1, ema_decay=0.9999, log_every=100)
        config.eval_every = config.checkpoint_every = "1 epochs"
        config.optimization.optimizer = "rmsprop_tf(decay=0.9, momentum=0.9, eps=1.0)"
        config.optimization.schedule = "exponential"
        config.optimization.learning_rate = 0.36  # 0.045 per device, as in slim
        config.optimization.warmup = "5 epochs"
        # Everything but depthwise filters, as in slim; norms and biases have no kernel.
        config.optimization.weight_decay_on = "^(?!.*depthwise).*kernel"
    elif preset == "quick":
        config.update(duration="30 steps", log_every=10)
        config.optimization.warmup = "5 steps"
        config.data.validation = 1000
    elif preset == "tuned":
        config.tuned = ("optimization.learning_rate", (0.025, 0.05, 0.1, 0.2, 0.4))
        config.tuning_seeds = 2
    elif preset == "eight_bits":
        config.model.activation = "relu6"
    config.baseline = "linear"
    config.arms = functools.partial(set_arms, preset=preset, of_preset=_fields_of_cost(config))
    config.panels = ()  # set with the arms
    return config


def set_arms(
    config: ml_collections.ConfigDict, *, preset: str, of_preset: Mapping[str, Any]
) -> None:
    """Sets arms, panels and seeds of a config whose other fields are final.

    `of_preset` has the fields that decide the cost of the preset's networks. If others are given,
    the widths of equal cost are searched, which takes up to half a minute.
    """
    model: Mapping[str, Any] = of_preset["model"]
    more = preset in LONG
    expansions = (1.0, 2.0, 4.0, 6.0, 8.0, *((10.0,) if more else ()))
    widths = (0.25, 0.35, 0.5, 0.75, 1.0, *((1.4,) if more else ()))
    arms: dict[str, dict[str, Any]] = {
        "linear": {},
        "relu6": {"model.bottleneck": "relu6"},
        "relu_inside": {"model.activation": "relu"},
        "expansion_shortcut": {"model.shortcut": "expansion"},
        "no_shortcut": {"model.shortcut": "none"},
        **{f"t_{t:g}": {"model.expansion": t} for t in expansions if t != model["expansion"]},
        **{f"width_{w:g}": {"model.width": w} for w in widths if w != model["width"]},
        **{arm: dict(changes) for arm, (changes, _) in EQUAL_COST.items()},
    }
    others = ("relu_inside", "mobilenet_v1")  # only of eight_bits
    arms = {arm: arms[arm] for arm in ARMS.get(preset, [x for x in arms if x not in others])}
    is_of_preset = of_preset == _fields_of_cost(config)
    for arm, width in zip(EQUAL_COST, WIDTHS.get(preset, WIDTHS[""]), strict=True):
        if arm in arms:
            start = width * config.model.width / model["width"]
            found = width if is_of_preset else _width_of_equal_cost(config, arm, start)
            arms[arm]["model.width"] = found
    if config.seeds is None:
        config.seeds, of_arms = SEEDS.get(preset, (1, {}))
        for arm, count in of_arms.items():
            arms[arm]["seeds"] = count
    config.arms = tuple(arms.items())  # pairs, because a ConfigDict would sort the arms by name
    config.panels = _panels(preset, tuple(arms))


def _fields_of_cost(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        "model": config.model.to_dict(),
        **{name: config.data[name] for name in ("name", "image_size")},
    }


def _width_of_equal_cost(config: ml_collections.ConfigDict, arm: str, start: float) -> float:
    """Returns the width of an arm, to 0.01, at which it costs what the baseline does."""
    # These import JAX, which the preset's own widths do not wait for.
    from mnv2.analysis import complexity
    from mnv2.runtime.terminal import note
    from mnv2.sweeps.plan import changed
    from mnv2.training.config import from_config
    from mnv2.training.setup import network_of

    changes, cost = EQUAL_COST[arm]

    def count(fields: Mapping[str, Any]) -> int:
        of_arm = from_config(changed(config, fields, arm))
        number: int = getattr(complexity, cost)(*network_of(of_arm))
        return number

    width = complexity.nearest_width(
        lambda w: count({**changes, "model.width": w}), count({}), start
    )
    note(f"{arm} has width {width:g}, with the {cost.replace('_', '-')} of linear")
    return width


def _panels(preset: str, arms: Sequence[str]) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """Returns the panels of the figure, one per ablation: (title, field on the x axis, arms)."""
    if preset == "eight_bits":
        return (
            ("bottleneck", "model.bottleneck", ("linear", "relu6")),
            ("inside", "model.activation", ("linear", "relu_inside")),
            ("width", "model.width", ("width_0.25", "linear", "width_1")),
            ("network", "model.name", ("linear", "separable", "mobilenet_v1")),
        )
    panels = (
        ("bottleneck", "model.bottleneck", ("relu6",)),
        ("shortcut", "model.shortcut", ("expansion_shortcut", "no_shortcut")),
        ("expansion", "model.expansion", [arm for arm in arms if arm.startswith("t_")]),
        ("width", "model.width", [arm for arm in arms if arm.startswith("width_")]),
        ("block", "arm", [arm for arm in arms if arm.startswith(("separable", "hourglass"))]),
    )
    shown = [(title, field, [arm for arm in of if arm in arms]) for title, field, of in panels]
    return tuple((title, field, ("linear", *of)) for title, field, of in shown if of)
