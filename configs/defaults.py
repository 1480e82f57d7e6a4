"""Every field of a config, with what most runs here share."""

import ml_collections
from ml_collections import config_dict


def defaults() -> ml_collections.ConfigDict:
    """A short run of MobileNetV2 0.35 on Fashion-MNIST; experiments change what they are about."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # the first; a run's seed sets its initial values, order of data, augmentation
    config.seeds = 1

    config.data = ml_collections.ConfigDict()
    config.data.name = "fashion_mnist"  # or any TFDS classification set, or folder:PATH
    config.data.dir = config_dict.placeholder(str)  # TFDS's own: ~/tensorflow_datasets
    config.data.on_broken = "stop"  # if pictures cannot be read; or skip them
    config.data.validation = 5000  # held out from the end of train
    config.data.image_size = config_dict.placeholder(int)  # as the data set has them
    config.data.augmentation = "none"  # none, flip, crop_flip, inception
    config.data.pad = 4  # pixels, for crop_flip

    config.model = ml_collections.ConfigDict()  # fields of mnv2.models.MobileNetV2
    config.model.name = "mobilenet_v2"
    config.model.width = 0.35
    config.model.expansion = 6.0
    config.model.bottleneck = "linear"
    config.model.shortcut = "bottleneck"
    config.model.block = "inverted_residual"
    # Of the stem and of each row of table 2: 28 -> 14, 14, 7, 4, 4, 4, 2, 2.
    config.model.strides = (2, 1, 2, 2, 1, 1, 2, 1)
    config.model.dropout = 0.0
    config.model.padding = "same"
    config.model.bn_momentum = 0.9  # a run of 600 steps needs a short memory
    config.model.bn_epsilon = 1e-3
    config.model.dtype = "float32"

    # Durations: '2 epochs', '1000 steps' or '100000 examples'.
    config.batch_size = 128
    config.eval_batch_size = 500
    config.duration = "500 steps"  # a little more than an epoch
    config.label_smoothing = 0.0
    config.on_nan = "stop"  # at a loss that is not finite; skip: leave that step out, and count it
    config.ema_decay = 0.0  # 0: no moving average of the parameters
    config.log_every = 50  # steps
    config.eval_every = "250 steps"
    config.checkpoint_every = "250 steps"

    config.optimization = ml_collections.ConfigDict()
    config.optimization.optimizer = "sgd"  # sgd, rmsprop, adamw
    config.optimization.schedule = "cosine"  # cosine, exponential, constant
    config.optimization.learning_rate = 0.05
    config.optimization.warmup = "50 steps"
    config.optimization.momentum = 0.9
    config.optimization.weight_decay = 4e-5
    config.optimization.weight_decay_on = "kernel"  # a pattern of parameters' paths
    config.optimization.decay_rate = 0.98  # exponential: a factor
    config.optimization.decay_every = "1 epochs"  # exponential: this often
    config.optimization.rmsprop_decay = 0.9
    config.optimization.epsilon = 1.0  # rmsprop: slim's, not a typing error
    return config
