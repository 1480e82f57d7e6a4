"""What does each part of a modern recipe do on Fashion-MNIST? Small networks, short runs.

    python -m mnv2.main --config configs/recipes.py     36 runs, about an hour of one core
    python -m mnv2.main --config configs/recipes.py:few 27 runs, 51 minutes of one core
    python -m mnv2.main --config configs/recipes.py:distillation --config.teacher FILE

Each arm adds one part of a recipe to `plain`, the baseline of configs/v2_ablation.py. (`repeats`
also crops and flips: compare it with `crop_flip`.) Runs of 500 steps, a little more than an epoch,
hardly overfit: augmentation makes the task harder and has no time to pay. `ema` has the moving
average of the parameters, which must be close to the parameters themselves.

`:few` has only 2,000 training pictures, which the networks see 64 times: what is against
overfitting can pay. `:distillation` compares a network of width 0.25 that learns from labels with
one that also learns from a teacher.
"""

from typing import Any

import ml_collections

from mnv2.training.config import defaults

PRESETS = ("", "few", "distillation")
FEW = 2000  # of the 60,000 training pictures
AGAINST_OVERFITTING = (
    *("plain", "flip", "crop_flip", "random", "trivial_wide", "erasing"),
    *("mixup", "cutmix", "smoothing"),
)
ARMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flip": {"data.train": "flip"},
    "crop_flip": {"data.train": "pad_crop(2)|flip"},
    "random": {"data.train": "rand_augment(2, 9)"},
    "trivial_wide": {"data.train": "trivial_augment_wide"},
    "erasing": {"data.train": "erase(0.25)"},
    "repeats": {"data.train": "pad_crop(2)|flip", "data.repeats": 4},
    "mixup": {"data.train": "mix(mixup=0.2)"},
    "cutmix": {"data.train": "mix(cutmix=1.0)"},
    "smoothing": {"label_smoothing": 0.1},
    "ema": {"ema_decay": 0.99},
    "accumulated": {"accumulate": 4},
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config of the comparison."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS[1:])}")
    config = defaults()
    config.seeds = 3
    arms, config.baseline = ARMS, "plain"
    if preset == "few":
        config.data.validation, config.eval_every = 60_000 - FEW, "0 steps"
        config.duration = "1000 steps"
        arms = {name: ARMS[name] for name in AGAINST_OVERFITTING}
    if preset == "distillation":
        config.seeds = 5
        config.model.width = 0.25
        config.temperature, config.label_weight = 4.0, 0.1
        arms = {"labels": {"label_weight": 1.0}, "taught": {}}
        config.baseline = "labels"
    config.arms = tuple(arms.items())
    config.panels = (("what is added", "arm", tuple(arms)),)
    return config
