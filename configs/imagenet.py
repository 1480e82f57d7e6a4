"""The recipes with which the published networks were trained on ImageNet.

    python -m mnv2.main --config configs/imagenet.py:d_li14 --workdir runs/d_li14

One network per preset. The authors of this file have no ImageNet: each preset was run for some
steps on a set of its shape (docs/recipes.md), none to its end. The top-1 to expect is the one that
was published for the recipe.

    preset          network         top-1   epochs  hardware of the source
    paper           MobileNetV2     72.0    420     8 GPUs of slim's README, 700,000 steps
    v1_paper        MobileNetV1     70.6    100     not published
    torchvision_v1  MobileNetV2     71.878  300     8 V100
    torchvision_v2  MobileNetV2     72.154  600     8 GPUs
    d_li14          MobileNetV2     72.192  150     4 TITAN Xp, 2 days
    timm            MobileNetV2     72.976  450     not published
    resnet50        ResNet-50       -       90      a network to compare with; no published result

An H100 trains MobileNetV2 with up to 7,300 pictures per second (docs/accelerators.md). An epoch,
1.28 million pictures, then takes three minutes: 150 epochs 7 hours, 600 epochs 29 hours, if the
host reads and augments as many pictures. docs/recipes.md has what a CPU core does of that.

Each value has its source beside it. What a source does not say is marked with "not said".
"""

from collections.abc import Callable

import ml_collections

from mnv2.training.config import defaults

NOT_DEPTHWISE = "^(?!.*depthwise).*kernel"  # slim decays all kernels but depthwise ones
EVERYTHING = "."  # PyTorch decays norms and biases too


def _common() -> ml_collections.ConfigDict:
    """Returns what all recipes share."""
    config = defaults()
    config.data.update(name="imagenet2012", image_size=224)
    config.data.validation = 10_000  # of train, for choices; the test split is ImageNet's
    config.model = ml_collections.ConfigDict({"name": "mobilenet_v2", "width": 1.0})
    config.model.update(strides="imagenet", padding="same", dropout=0.0, dtype="bfloat16")
    config.model.update(bn_momentum=0.9, bn_epsilon=1e-3)
    config.bn_group = 1  # each GPU alone, as all sources; one GPU normalises its whole batch
    config.eval_batch_size = 1000
    config.eval_every = config.checkpoint_every = "1 epochs"
    config.log_every = 100
    config.optimization.warmup = "0 steps"
    return config


def _slim(config: ml_collections.ConfigDict) -> None:
    """Sets what slim's script does by default, for both papers."""
    # Crops of 5 to 100 % of the area, redrawn below 10 %; the fast mode changes brightness and
    # saturation.
    config.data.train = "inception_crop(0.05, 1.0)|flip|distort_color(fast=True)"
    config.data.evaluation = "central_crop(0.875)|resize(method='bilinear_tf1')"
    config.batch_size = 768  # 96 on each of 8; 115 MB per batch of bytes
    # train_image_classifier.py: rmsprop_decay, momentum and opt_epsilon, which is 1.0 indeed
    config.optimization.optimizer = "rmsprop_tf(decay=0.9, momentum=0.9, eps=1.0)"
    config.optimization.schedule = "exponential"
    config.optimization.decay_rate = 0.98
    config.optimization.learning_rate = 0.36  # 0.045 times 8, slim's README
    config.optimization.weight_decay = 4e-5
    config.optimization.weight_decay_on = NOT_DEPTHWISE


def _paper(config: ml_collections.ConfigDict) -> None:
    """The command in slim's README, which reaches 72.0 %; Sandler et al., section 6.1."""
    _slim(config)
    config.duration = "700000 steps"  # slim's README
    config.optimization.decay_every = "2.5 epochs"  # slim's README; the paper has 1
    config.label_smoothing = 0.1  # slim's README
    config.ema_decay = 0.9999  # slim's README
    config.model.dropout = 0.2  # mobilenet.py, training_scope
    config.model.bn_momentum = 0.997  # mobilenet.py, training_scope


def _v1_paper(config: ml_collections.ConfigDict) -> None:
    """Howard et al., section 3.2: RMSProp, less augmentation, no label smoothing."""
    _slim(config)
    config.model.name = "mobilenet_v1"
    config.model.dropout = 0.001  # mobilenet_v1.py
    config.model.bn_momentum = 0.9997  # mobilenet_v1.py
    config.duration = "100 epochs"  # not said
    config.optimization.decay_every = "1 epochs"  # not said; as for V2
    config.ema_decay = 0.9999  # slim's checkpoints have averages
    config.data.train = "inception_crop(0.05, 1.0)|flip"  # "fewer distortions"


def _torch(config: ml_collections.ConfigDict) -> None:
    """Sets what PyTorch's recipes share."""
    config.data.train = "resized_crop(0.08, 1.0)|flip"  # RandomResizedCrop's default, bilinear
    config.data.normalization = "imagenet"
    config.data.evaluation = "resize_shorter(256)|center_crop(224)"
    config.model.padding, config.model.bn_epsilon = "symmetric", 1e-5
    config.optimization.optimizer = "sgd(momentum=0.9, nesterov=False)"
    config.optimization.weight_decay_on = EVERYTHING


def _torchvision_v1(config: ml_collections.ConfigDict) -> None:
    """IMAGENET1K_V1: the README of torchvision's references/classification."""
    _torch(config)
    config.batch_size = 256  # 32 on each of 8, as mmpretrain's config of this recipe
    config.duration = "300 epochs"  # --epochs 300
    config.model.dropout = 0.2  # torchvision's network
    config.optimization.learning_rate = 0.045  # --lr 0.045
    config.optimization.weight_decay = 4e-5  # --wd 0.00004
    config.optimization.schedule = "exponential"
    config.optimization.decay_rate = 0.98  # --lr-gamma 0.98
    config.optimization.decay_every = "1 epochs"  # --lr-step-size 1


def _torchvision_v2(config: ml_collections.ConfigDict) -> None:
    """IMAGENET1K_V2: the command in torchvision's pull request 5560."""
    _torch(config)
    config.data.image_size = 176  # --train-crop-size 176
    # --auto-augment ta_wide, --random-erase 0.1, --mixup-alpha 0.2, --cutmix-alpha 1.0
    config.data.train = (
        "resized_crop(0.08, 1.0)|flip|trivial_augment_wide(interpolation='bilinear')|erase(0.1)"
        "|mix(mixup=0.2, cutmix=1.0)"
    )
    config.data.evaluation = "resize_shorter(232)|center_crop(224)"  # --val-resize-size 232
    config.data.repeats = 4  # --ra-sampler --ra-reps 4
    config.batch_size = 1024  # 128 on each of 8
    config.duration = "600 epochs"
    config.label_smoothing = 0.1
    config.ema_decay = 0.99997  # --model-ema; its decay is not in the command
    config.model.dropout = 0.2  # torchvision's network
    config.optimization.learning_rate = 0.5
    config.optimization.schedule = "cosine"
    config.optimization.rate_every = "1 epochs"  # PyTorch's schedules step once per epoch
    config.optimization.warmup = "5 epochs"  # --lr-warmup-epochs 5 --lr-warmup-method linear
    config.optimization.warmup_from = 0.01  # not in the command; 0 would waste an epoch
    config.optimization.weight_decay = 2e-5
    config.optimization.norm_weight_decay = 0.0  # --norm-weight-decay 0.0


def _d_li14(config: ml_collections.ConfigDict) -> None:
    """d-li14/mobilenetv2.pytorch: the README."""
    _torch(config)
    config.update(batch_size=256, duration="150 epochs")
    config.optimization.update(learning_rate=0.05, schedule="cosine", weight_decay=4e-5)


def _timm(config: ml_collections.ConfigDict) -> None:
    """mobilenetv2_100.ra_in1k: RandAugment "B", RMSProp, averages, steps with warm-up (model card).

    The command was not published. These are the values of timm's command for EfficientNet-B0, of
    which the card says that the recipe evolved. What differs here: timm varies the strength of
    RandAugment, applies each operation with a probability of 1/2 and has a few other operations. It
    erases with noise, resizes with bilinear or bicubic at random, drops paths (--drop-connect 0.2),
    and counts decays from the beginning of the warm-up.
    """
    _torch(config)
    # Results file: bicubic. --aa rand-m9-mstd0.5: 9 of timm's 10 is 27 of 30, filled with the mean
    # colour. --reprob 0.2.
    config.data.train = (
        "resized_crop(0.08, 1.0, method='bicubic_antialiased')|flip"
        "|rand_augment(2, 27, interpolation='bilinear', fill=124)|erase(0.2)"
    )
    config.data.evaluation = "resize_shorter(256, method='bicubic_antialiased')|center_crop(224)"
    config.batch_size = 768  # -b 384 on 2
    config.duration = "450 epochs"  # --epochs 450
    config.label_smoothing = 0.1  # not said; the script's default
    config.ema_decay = 0.9999  # --model-ema-decay 0.9999
    config.model.dropout = 0.2  # --drop 0.2
    # --opt rmsproptf --opt-eps .001
    config.optimization.optimizer = "rmsprop_tf(decay=0.9, momentum=0.9, eps=1e-3)"
    config.optimization.learning_rate = 0.048  # --lr .048
    config.optimization.schedule = "exponential"  # --sched step
    config.optimization.decay_rate = 0.97  # --decay-rate .97
    config.optimization.decay_every = "2.4 epochs"  # --decay-epochs 2.4
    config.optimization.rate_every = "1 epochs"
    config.optimization.warmup = "3 epochs"  # not said
    config.optimization.warmup_from = 1e-6 / 0.048  # --warmup-lr 1e-6
    config.optimization.weight_decay = 1e-5  # --weight-decay 1e-5
    config.optimization.weight_decay_on = "kernel"  # timm leaves norms and biases out


def _resnet50(config: ml_collections.ConfigDict) -> None:
    """The network that the paper's blocks are compared with; a usual recipe, of no one source."""
    _torch(config)
    config.model = ml_collections.ConfigDict(
        {"name": "resnet50", "strides": "imagenet", "dtype": "bfloat16"}
    )
    config.batch_size = 256
    config.duration = "90 epochs"
    config.optimization.learning_rate = 0.1
    config.optimization.schedule = "cosine"
    config.optimization.warmup = "5 epochs"
    config.optimization.weight_decay = 1e-4


RECIPES: dict[str, Callable[[ml_collections.ConfigDict], None]] = {
    "paper": _paper,
    "v1_paper": _v1_paper,
    "torchvision_v1": _torchvision_v1,
    "torchvision_v2": _torchvision_v2,
    "d_li14": _d_li14,
    "timm": _timm,
    "resnet50": _resnet50,
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config of one recipe."""
    if preset not in RECIPES:
        raise ValueError(
            f"unknown preset {preset!r}: choose one of {', '.join(RECIPES)}, as imagenet.py:d_li14"
        )
    config = _common()
    RECIPES[preset](config)
    config.arms = ((preset, {}),)
    config.baseline = preset
    config.panels = (("recipe", "arm", (preset,)),)
    return config
