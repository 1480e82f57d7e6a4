"""Fine-tunes a network: weights from a file, a new classifier, your own data set.

    python -m mnv2.main --config configs/finetune.py --config.weights FILE \\
        --config.data.name folder:PATH

FILE is anything that mnv2.pretrained.load reads: weights of Keras, torchvision or timm, a slim
checkpoint, the folder of an earlier run, or a name on the Hugging Face hub. The data are any TFDS
classification set, or pictures in PATH/train/CLASS/ and PATH/test/CLASS/. Afterwards:

    python -m mnv2.predict PICTURE... --weights WORKDIR/finetune/0

Presets:

    configs/finetune.py          trains all layers; the learning rate of the backbone is a
                                 fraction of that of the classifier
    configs/finetune.py:frozen   trains the classifier only; the backbone, with its batch norm,
                                 does not change
    configs/finetune.py:compare  trains both ways, and the same network from scratch, 5 seeds
                                 each: how much do the weights improve the accuracy?
                                 `python -m experiments.paper.transfer` does this on Fashion-MNIST
                                 in a few minutes.

With ImageNet weights, 224 pixels and all layers trained, two CPU cores process about 10 images per
second: --config.duration "3 epochs" of 1000 pictures takes five minutes.
"""

import ml_collections
from ml_collections import config_dict

from mnv2.training.config import defaults

PRESETS = ("", "frozen", "compare")
ARMS = {
    "finetune": {},
    "frozen": {"optimization.backbone_rate": 0.0},
    "scratch": {"start": "scratch", "optimization.backbone_rate": 1.0},
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """Returns the config that trains the network of a file with a new classifier."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS[1:])}")
    config = defaults()
    config.weights = config_dict.placeholder(str)  # a file that mnv2.pretrained.load reads
    config.start = "weights"  # or scratch: the network of the file with new initial values

    config.model = ml_collections.ConfigDict()  # all other fields are as in the file
    config.model.dropout = 0.2
    config.model.bn_momentum = 0.9  # files have values up to 0.9997: too slow for a short run
    config.model.dtype = "float32"

    config.data.validation = 0
    config.data.image_size = 224  # square, of the size for which the weights were trained
    config.data.train = "inception_crop|flip"  # use pad_crop(4)|flip for 28 to 64 pixels

    config.update(batch_size=32, eval_batch_size=64, duration="5 epochs", log_every=10)
    config.eval_every = config.checkpoint_every = "1 epochs"

    config.optimization.learning_rate = 0.02  # of the new classifier
    config.optimization.backbone_rate = 0.1  # of the backbone, relative to it; 0: frozen
    config.optimization.warmup = "0 steps"

    names = {"": ("finetune",), "frozen": ("frozen",), "compare": tuple(ARMS)}[preset]
    config.arms = tuple((name, ARMS[name]) for name in names)
    config.baseline = names[-1]
    config.seeds = 5 if preset == "compare" else 1
    config.panels = (("start", "arm", names),)
    return config
