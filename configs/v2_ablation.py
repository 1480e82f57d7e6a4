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
                                      One minute.
    configs/v2_ablation.py:hour       every arm with 3 seeds, 1000 steps each. 80 minutes on two CPU
                                      cores, beside other work. linear 86.9 %, relu6 83.7 %.
    configs/v2_ablation.py:full       Fashion-MNIST, 15 epochs with augmentation, 5 seeds of every
                                      arm, as for a publication. On an H100 two arms took 7 minutes:
                                      linear 92.4 %, relu6 91.3 %.
    configs/v2_ablation.py:tuned      each of six arms at the learning rate of the baseline, and at
                                      its own, which are chosen on validation with other seeds.
                                      84 minutes on two CPU cores, beside other work. linear 85.3 %,
                                      relu6 81.3 %.
    configs/v2_ablation.py:eight_bits  the arms of experiments.quantization: blocks, widths, ReLU
                                      or ReLU6 inside, V1 as a network; 500 steps, 5 seeds each.
                                      33 minutes on two CPU cores. Expect 84.7 % for linear,
                                      84.4 % for relu_inside, 83.3 % for mobilenet_v1.
    configs/v2_ablation.py:cifar10    CIFAR-10, 100 epochs, width 0.5, 3 seeds. For one GPU.
    configs/v2_ablation.py:imagenet   ImageNet, 150 epochs, width 1.0, the paper's RMSProp, 1 seed.
                                      For eight GPUs or TPUs. In the paper the baseline has
                                      72.0 % top-1.

The authors of this file have not run the last three presets to their end, but for those
two arms.
"""

from typing import Any

import ml_collections

from configs.defaults import defaults

PRESETS = ("", "quick", "hour", "full", "tuned", "eight_bits", "cifar10", "imagenet")


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config of the sweep: the shared settings, and the changes of each arm."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS[1:])}")
    config = defaults()
    expansions: tuple[float, ...] = (1.0, 2.0, 4.0, 6.0, 8.0)
    widths: tuple[float, ...] = (0.25, 0.35, 0.5, 0.75, 1.0)
    separable, hourglass = 0.91, 0.79  # widths with the multiply-adds of the baseline
    same_size = (0.72, 0.64)  # widths of the same two with the parameters of the baseline

    if preset == "hour":
        config.seeds = 3
        config.duration = "1000 steps"
        config.eval_every = config.checkpoint_every = "500 steps"
        config.optimization.warmup = "100 steps"
    elif preset == "full":
        config.seeds = 5
        config.duration = "15 epochs"
        config.eval_every = config.checkpoint_every = "1 epochs"
        config.data.augmentation = "crop_flip"
        config.data.pad = 2
        config.model.strides = (1, 1, 1, 2, 2, 1, 2, 1)
        config.model.bn_momentum = 0.99
        config.optimization.warmup = "1 epochs"
        expansions, widths = (*expansions, 10.0), (*widths, 1.4)
        separable, hourglass = 0.97, 0.83
    elif preset == "cifar10":
        config.seeds = 3
        config.data.name = "cifar10"
        config.data.augmentation = "crop_flip"
        config.data.pad = 4
        config.model.width = 0.5
        config.model.strides = (1, 1, 1, 2, 2, 1, 2, 1)
        config.model.bn_momentum = 0.99
        config.duration = "100 epochs"
        config.eval_every = config.checkpoint_every = "5 epochs"
        config.optimization.learning_rate = 0.1
        config.optimization.warmup = "5 epochs"
        config.optimization.weight_decay = 5e-4
        expansions, widths = (*expansions, 10.0), (*widths, 1.4)
        separable, hourglass = 1.38, 1.2
        same_size = (1.08, 0.97)
    elif preset == "imagenet":
        config.data.name = "imagenet2012"
        config.data.validation = 10_000
        config.data.image_size = 224
        config.data.augmentation = "inception"
        config.data.distortion = "fast"
        config.model.width = 1.0
        config.model.strides = (2, 1, 2, 2, 2, 1, 2, 1)
        config.model.dropout = 0.2
        config.model.bn_momentum = 0.997
        config.model.dtype = "bfloat16"
        config.batch_size = 768  # 96 per device on eight; 116 MB per batch of images
        config.eval_batch_size = 1000
        config.duration = "150 epochs"
        config.label_smoothing = 0.1
        config.ema_decay = 0.9999
        config.eval_every = config.checkpoint_every = "1 epochs"
        config.log_every = 100
        config.optimization.optimizer = "rmsprop"
        config.optimization.schedule = "exponential"
        config.optimization.learning_rate = 0.36  # 0.045 per device, as in slim
        config.optimization.warmup = "5 epochs"
        # Everything but depthwise filters, as in slim; norms and biases have no kernel.
        config.optimization.weight_decay_on = "^(?!.*depthwise).*kernel"
        expansions, widths = (*expansions, 10.0), (*widths, 1.4)
        separable, hourglass = 2.38, 2.12
        same_size = (1.59, 1.49)

    baseline = config.model
    arms: dict[str, dict[str, Any]] = {
        "linear": {},
        "relu6": {"model.bottleneck": "relu6"},
        "expansion_shortcut": {"model.shortcut": "expansion"},
        "no_shortcut": {"model.shortcut": "none"},
        **{f"t_{t:g}": {"model.expansion": t} for t in expansions if t != baseline.expansion},
        **{f"width_{w:g}": {"model.width": w} for w in widths if w != baseline.width},
        "separable": {"model.block": "separable", "model.width": separable},
        "hourglass": {"model.block": "hourglass", "model.width": hourglass},
        "separable_shortcut": {"model.block": "separable_shortcut", "model.width": separable},
        "separable_same_size": {"model.block": "separable", "model.width": same_size[0]},
        "hourglass_same_size": {"model.block": "hourglass", "model.width": same_size[1]},
    }
    if preset == "":
        for arm in ("separable_shortcut", "separable_same_size", "hourglass_same_size"):
            del arms[arm]  # to end within half an hour
        config.seeds = 2
        arms["linear"]["seeds"] = arms["relu6"]["seeds"] = 5
        for arm in ("expansion_shortcut", "no_shortcut", "separable", "hourglass"):
            arms[arm]["seeds"] = 3
    if preset == "quick":
        config.duration = "30 steps"
        config.optimization.warmup = "5 steps"
        config.data.validation = 1000
        config.log_every = 10
        arms = {arm: arms[arm] for arm in ("linear", "relu6", "t_1", "width_0.25")}
        arms["linear"]["seeds"] = arms["relu6"]["seeds"] = 2
    if preset == "tuned":
        config.tuned = ("optimization.learning_rate", (0.025, 0.05, 0.1, 0.2, 0.4))
        config.tuning_seeds = 2
        config.seeds = 3
        fixed = ("expansion_shortcut", "no_shortcut", "separable", "hourglass")
        arms = {arm: arms[arm] for arm in ("linear", "relu6", *fixed)}
        arms["linear"]["seeds"] = arms["relu6"]["seeds"] = 5
    if preset == "eight_bits":
        config.seeds = 5
        config.model.activation = "relu6"
        arms = {
            **{arm: arms[arm] for arm in ("linear", "relu6")},
            "relu_inside": {"model.activation": "relu"},
            **{arm: arms[arm] for arm in ("width_0.25", "width_1", "separable")},
            "mobilenet_v1": {  # with the multiply-adds and the resolutions of the baseline
                "model.name": "mobilenet_v1",
                "model.width": 0.28,
                "model.strides": (2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 1, 1, 2, 1),
            },
        }
    config.arms = tuple(arms.items())  # pairs, because a ConfigDict would sort the arms by name
    config.baseline = "linear"

    def varied(prefix: str) -> tuple[str, ...]:
        return tuple(arm for arm in arms if arm.startswith(prefix))

    # The panels of the figure, one per ablation: (title, field on the x axis, arms).
    config.panels = (
        ("bottleneck", "model.bottleneck", ("linear", "relu6")),
        ("shortcut", "model.shortcut", ("linear", "expansion_shortcut", "no_shortcut")),
        ("expansion", "model.expansion", ("linear", *varied("t_"))),
        ("width", "model.width", ("linear", *varied("width_"))),
        (
            "block",
            "arm",
            ("linear", *(arm for arm in arms if arm.startswith(("separable", "hourglass")))),
        ),
    )
    if preset == "eight_bits":
        config.panels = (
            ("bottleneck", "model.bottleneck", ("linear", "relu6")),
            ("inside", "model.activation", ("linear", "relu_inside")),
            ("width", "model.width", ("width_0.25", "linear", "width_1")),
            ("network", "model.name", ("linear", "separable", "mobilenet_v1")),
        )
    # Of presets with few arms, only the panels that compare any.
    shown = [
        (title, field, [arm for arm in of if arm in arms]) for title, field, of in config.panels
    ]
    config.panels = tuple((title, field, tuple(of)) for title, field, of in shown if len(of) > 1)
    return config
