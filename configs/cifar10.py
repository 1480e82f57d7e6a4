"""MobileNetV2 on CIFAR-10, as kuangliu/pytorch-cifar trains it.

    python -m mnv2.main --config configs/cifar10.py

Its README has 94.43 % for MobileNetV2: the best of the test accuracies after each epoch, of one
seed. Here the test split is looked at once, after the last epoch. The authors of this file have not
run it to its end.

The network of the source has five more 1x1 convolutions, which the paper lacks: in the first
block, before the depthwise one; and in four blocks of stride 1 that change the number of channels,
whose input is added after such a convolution.

Each value is that of main.py there, or of models/mobilenetv2.py.
"""

import ml_collections

from mnv2.training.config import defaults


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config of the recipe."""
    if preset:
        raise ValueError(f"unknown preset {preset!r}: configs/cifar10.py has none")
    config = defaults()
    config.data.name = "cifar10"
    config.data.validation = 0  # main.py trains on all 50,000; hold some out to choose values
    config.data.update(train="pad_crop(4)|flip", normalization="cifar10")
    config.model = ml_collections.ConfigDict({"name": "mobilenet_v2", "width": 1.0})
    config.model.update(activation="relu", padding="symmetric", dropout=0.0, dtype="float32")
    config.model.strides = "small"  # 32 -> 32, 32, 32, 16, 8, 8, 4, 4
    config.model.bn_momentum, config.model.bn_epsilon = 0.9, 1e-5  # PyTorch's
    config.batch_size = 128
    config.bn_group = 1  # torch.nn.DataParallel normalises on each device alone
    config.duration = "200 epochs"
    config.eval_every = "0 steps"
    config.checkpoint_every = "5 epochs"
    config.optimization.update(learning_rate=0.1, schedule="cosine", warmup="0 steps")
    config.optimization.rate_every = "1 epochs"  # scheduler.step() once per epoch
    config.optimization.optimizer = "sgd(momentum=0.9, nesterov=False)"
    config.optimization.weight_decay = 5e-4
    config.optimization.weight_decay_on = "."  # PyTorch decays norms and biases too
    config.arms = (("mobilenet_v2", {}),)
    config.baseline = "mobilenet_v2"
    config.panels = (("recipe", "arm", ("mobilenet_v2",)),)
    return config
