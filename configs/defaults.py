"""The fields that all configs share, with their default values."""

import ml_collections
from ml_collections import config_dict


def defaults() -> ml_collections.ConfigDict:
    """Returns a short run of MobileNetV2 0.35 on Fashion-MNIST, which experiments change."""
    config = ml_collections.ConfigDict()
    # The first seed. The seed of a run determines its initial values, order of data and
    # augmentation.
    config.seed = 0
    config.seeds = 1  # number of seeds

    config.data = ml_collections.ConfigDict()
    config.data.name = "fashion_mnist"  # or any TFDS classification set, or folder:PATH
    config.data.dir = config_dict.placeholder(str)  # default: that of TFDS, ~/tensorflow_datasets
    config.data.on_broken = "stop"  # or skip: for pictures that cannot be read
    config.data.validation = 5000  # examples held out from the end of train
    config.data.image_size = config_dict.placeholder(int)  # default: that of the data set
    config.data.augmentation = "none"  # none, flip, crop_flip, inception
    config.data.pad = 4  # pixels, for crop_flip

    config.model = ml_collections.ConfigDict()  # fields of mnv2.models.MobileNetV2
    config.model.name = "mobilenet_v2"
    config.model.width = 0.35
    config.model.expansion = 6.0
    config.model.bottleneck = "linear"
    config.model.shortcut = "bottleneck"
    config.model.block = "inverted_residual"
    # Strides of the stem and of each row of table 2: 28 -> 14, 14, 7, 4, 4, 4, 2, 2.
    config.model.strides = (2, 1, 2, 2, 1, 1, 2, 1)
    config.model.dropout = 0.0
    config.model.padding = "same"
    config.model.bn_momentum = 0.9  # a run of 600 steps needs short running averages
    config.model.bn_epsilon = 1e-3
    config.model.dtype = "float32"

    # Durations: '2 epochs', '1000 steps' or '100000 examples'.
    config.batch_size = 128
    config.eval_batch_size = 500
    # Devices that compute batch norm's statistics together. Default: all of them. The papers
    # trained with 1: each device alone.
    config.bn_group = config_dict.placeholder(int)
    config.duration = "500 steps"  # a little more than an epoch
    config.label_smoothing = 0.0
    config.on_nan = "stop"  # or skip: for a loss that is not finite; skipped steps are counted
    config.ema_decay = 0.0  # of the moving average of the parameters; 0: no average
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
    config.optimization.weight_decay_on = "kernel"  # a regular expression for paths of parameters
    config.optimization.decay_rate = 0.98  # for exponential: factor per decay
    config.optimization.decay_every = "1 epochs"  # for exponential: time between decays
    config.optimization.rmsprop_decay = 0.9
    config.optimization.epsilon = 1.0  # for rmsprop: slim uses 1.0, so this is not a typing error
    return config
