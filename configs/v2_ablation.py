"""MobileNetV2's ablations: what does each choice of the paper buy?

python -m mnv2.main --config configs/v2_ablation.py             Fashion-MNIST, two CPU cores
python -m mnv2.main --config configs/v2_ablation.py:full        Fashion-MNIST, to publish
python -m mnv2.main --config configs/v2_ablation.py:cifar10     CIFAR-10, one GPU
python -m mnv2.main --config configs/v2_ablation.py:imagenet    ImageNet, eight GPUs or TPUs
"""

import ml_collections


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.seeds = 1

    config.data = ml_collections.ConfigDict()
    config.data.name = "fashion_mnist"
    config.data.dir = ml_collections.config_dict.placeholder(str)
    config.data.validation = 5000
    config.data.image_size = ml_collections.config_dict.placeholder(int)
    config.data.augmentation = "none"
    config.data.pad = 2

    config.model = ml_collections.ConfigDict()
    config.model.name = "mobilenet_v2"
    config.model.width = 0.35
    config.model.expansion = 6.0
    config.model.bottleneck = "linear"
    config.model.shortcut = "bottleneck"
    config.model.block = "inverted_residual"
    config.model.strides = (2, 1, 2, 2, 1, 1, 2, 1)
    config.model.dropout = 0.0
    config.model.padding = "same"
    config.model.bn_momentum = 0.9
    config.model.bn_epsilon = 1e-3
    config.model.dtype = "float32"

    config.batch_size = 128
    config.eval_batch_size = 500
    config.duration = "1 epochs"
    config.label_smoothing = 0.0
    config.ema_decay = 0.0
    config.log_every = 50
    config.eval_every = "1 epochs"
    config.checkpoint_every = "200 steps"

    config.optimization = ml_collections.ConfigDict()
    config.optimization.optimizer = "sgd"
    config.optimization.schedule = "cosine"
    config.optimization.learning_rate = 0.2
    config.optimization.warmup = "50 steps"
    config.optimization.momentum = 0.9
    config.optimization.weight_decay = 4e-5
    config.optimization.weight_decay_on = "kernel"
    config.optimization.decay_rate = 0.98
    config.optimization.decay_every = "1 epochs"
    config.optimization.rmsprop_decay = 0.9
    config.optimization.epsilon = 1.0
    config.baseline = "linear"
    arms = {
        "linear": {"seeds": 5},
        "relu6": {"model.bottleneck": "relu6", "seeds": 5},
        "expansion_shortcut": {"model.shortcut": "expansion"},
        "no_shortcut": {"model.shortcut": "none"},
        **{f"t_{t}": {"model.expansion": float(t)} for t in (1, 2, 4, 8)},
        **{f"width_{w}": {"model.width": w} for w in (0.25, 0.5, 0.75, 1.0)},
        "separable": {"model.block": "separable", "model.width": 0.7},
        "hourglass": {"model.block": "hourglass", "model.width": 0.7},
    }
    config.panels = {
        "bottleneck": {"field": "model.bottleneck", "arms": ("linear", "relu6")},
    }
    config.arms = ml_collections.ConfigDict(arms, allow_dotted_keys=True)
    return config
