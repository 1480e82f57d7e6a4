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
    config.data.augmentation = "none"  # none, flip, crop_flip, inception, resized_crop
    config.data.pad = 4  # pixels, for crop_flip
    config.data.crop_area = (0.05, 1.0)  # of the picture's, for inception and resized_crop
    config.data.crop_aspect = (3 / 4, 4 / 3)  # width to height, for the same
    # nearest, bilinear or bicubic, as TensorFlow resizes; bilinear_antialiased or
    # bicubic_antialiased, as Pillow and torchvision do.
    config.data.interpolation = "bilinear"
    config.data.distortion = "none"  # of colours, as in slim: none, fast, full
    config.data.policy = "none"  # none, random (RandAugment), trivial_wide, auto_imagenet
    config.data.policy_operations = 2  # one after another, for random
    config.data.policy_strength = 9  # 0 to 30, for random
    config.data.policy_interpolation = "nearest"  # or bilinear: of shears, shifts and turns
    config.data.policy_fill = 0  # the value of pixels from outside of the picture
    config.data.erasing = 0.0  # the probability that a rectangle is erased
    config.data.repeats = 1  # how often an epoch has each of its pictures: repeated augmentation
    # Sizes of the pictures in training, each for an equal part of the run, such as (128, 160, 192);
    # (): image_size all the time. Progressive learning: arXiv 2104.00298, section 4.2.
    config.data.progressive = ()
    config.data.normalization = (
        "half"  # of pixels: half (-1 to 1), or mean and deviation of imagenet, cifar10
    )
    # What evaluation sees: --resize of mnv2.predict explains the methods.
    config.data.eval_method = "mnv2"
    config.data.eval_crop = 0.875  # the part of each side that is kept
    config.data.eval_size = config_dict.placeholder(int)  # default: image_size

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
    config.mixup = 0.0  # mixes pairs of pictures: alpha of the beta distribution; 0: never
    config.cutmix = 0.0  # the same with a rectangle; with both, each step takes one of them
    config.mix_until = config_dict.placeholder(str)  # a duration; default: to the end
    # Parts of a device's batch that are computed one after another, to need less memory. Batch norm
    # sees one part at a time.
    config.accumulate = 1
    # Distillation: a file of weights whose network sees the same pictures.
    config.teacher = config_dict.placeholder(str)
    config.temperature = 1.0  # of the softmax that is compared with the teacher's
    config.label_weight = 0.5  # of the labels' loss; the teacher's has the rest
    # Batches from which batch norm's statistics are computed anew before the test; 0: not at all.
    config.recalibrate = 0
    # Where a finished run is evaluated: on test, or on validation. In the latter case the run never
    # sees the test split: for choosing values.
    config.final_split = "test"
    config.on_nan = "stop"  # or skip: for a loss that is not finite; skipped steps are counted
    config.ema_decay = 0.0  # of the moving average of the parameters; 0: no average
    config.log_every = 50  # steps
    config.eval_every = "250 steps"  # of validation, and at the end; 0 steps: never
    config.checkpoint_every = "250 steps"  # and at the end

    config.optimization = ml_collections.ConfigDict()
    config.optimization.optimizer = "sgd"  # sgd, rmsprop, adamw
    config.optimization.schedule = "cosine"  # cosine, exponential, constant
    config.optimization.learning_rate = 0.05
    config.optimization.warmup = "50 steps"
    config.optimization.warmup_from = 0.0  # the part of the learning rate at the first step
    config.optimization.rate_every = "1 steps"  # '1 epochs': the rate changes once per epoch
    config.optimization.clip = 0.0  # the largest norm of all gradients; 0: any
    config.optimization.momentum = 0.9  # for adamw: the first beta
    config.optimization.nesterov = True  # for sgd; PyTorch's recipes have the plain momentum
    config.optimization.weight_decay = 4e-5
    config.optimization.weight_decay_on = "kernel"  # a regular expression for paths of parameters
    # Those of batch norm, and of all biases, whatever weight_decay_on matches: see torchvision.
    config.optimization.norm_weight_decay = config_dict.placeholder(float)
    config.optimization.bias_weight_decay = config_dict.placeholder(float)
    config.optimization.decay_rate = 0.98  # for exponential: factor per decay
    config.optimization.decay_every = "1 epochs"  # for exponential: time between decays
    config.optimization.rmsprop_decay = 0.9
    config.optimization.epsilon = 1.0  # for rmsprop: slim uses 1.0, so this is not a typing error
    return config
