"""Fine-tuning: weights from a file, a new classifier, a data set of your own.

    python -m mnv2.main --config configs/finetune.py --config.weights FILE \\
        --config.data.name folder:PATH

FILE is anything that mnv2.pretrained.load reads: weights of Keras, torchvision or timm, a slim
checkpoint, an earlier run's folder, a name on the Hugging Face hub. The data are any TFDS
classification set, or pictures in PATH/train/CLASS/ and PATH/test/CLASS/. Then:

    python -m mnv2.predict PICTURE... --weights WORKDIR/finetune/0

Presets:

    configs/finetune.py          all layers trained, the backbone at a fraction of the
                                 classifier's learning rate
    configs/finetune.py:frozen   the classifier alone; the backbone, with its batch norm, stays
    configs/finetune.py:compare  both, and the same network from scratch, 5 seeds each: what do
                                 the weights buy? `python -m experiments.transfer` does this on
                                 Fashion-MNIST in a few minutes.

With ImageNet weights and 224 pixels, two CPU cores train about 10 images a second with all layers:
--config.duration "3 epochs" of 1000 pictures takes five minutes.
"""

import ml_collections
from ml_collections import config_dict

from configs.defaults import defaults

PRESETS = ("", "frozen", "compare")
ARMS = {
    "finetune": {},
    "frozen": {"optimization.backbone_rate": 0.0},
    "scratch": {"start": "scratch", "optimization.backbone_rate": 1.0},
}


def get_config(preset: str = "") -> ml_collections.ConfigDict:
    """The file's network with a new classifier, and how it is trained."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}: choose one of {', '.join(PRESETS[1:])}")
    config = defaults()
    config.weights = config_dict.placeholder(str)  # what mnv2.pretrained.load takes
    config.start = "weights"  # or scratch: the file's network, initialised anew

    config.model = ml_collections.ConfigDict()  # all else is as in the file
    config.model.dropout = 0.2
    config.model.bn_momentum = 0.9  # files have up to 0.9997: too slow for a short run
    config.model.dtype = "float32"

    config.data.validation = 0
    config.data.image_size = 224  # squares of this size; what the weights were trained for
    config.data.augmentation = "inception"  # for 28 to 64 pixels: crop_flip

    config.batch_size = 32
    config.eval_batch_size = 64
    config.duration = "5 epochs"
    config.log_every = 10
    config.eval_every = config.checkpoint_every = "1 epochs"

    config.optimization.learning_rate = 0.02  # of the new classifier
    config.optimization.backbone_rate = 0.1  # of all else, relative to it; 0 freezes the backbone
    config.optimization.warmup = "0 steps"

    names = {"": ("finetune",), "frozen": ("frozen",), "compare": tuple(ARMS)}[preset]
    config.arms = tuple((name, ARMS[name]) for name in names)
    config.baseline = names[-1]
    config.seeds = 5 if preset == "compare" else 1
    config.panels = (("start", "arm", names),)
    return config
