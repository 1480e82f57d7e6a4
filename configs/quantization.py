"""Trains a network on, as 8 bits will compute it: quantization-aware training.

    python -m mnv2.main --config configs/quantization.py --workdir runs/linear_8_bits \\
        --config.weights runs/v2_ablation/linear/0
    python -m mnv2.export runs/linear_8_bits/channel/0 --to litert-int8 --calibrate fashion_mnist

Weights are anything that mnv2.pretrained.load reads. Three arms train the same network on, with the
same batches:

    float32     as before, to tell what training on brings by itself
    channel     rounded to 8 bits, with a scale for each output channel of a kernel
    tensor      rounded to 8 bits, with a scale for each kernel

`channel` is what exported files have. `--only channel` trains nothing else. The fields are those
of configs/finetune.py, set for Fashion-MNIST; for other data set --config.data.name,
--config.data.image_size and --config.duration. `python -m experiments.paper.quantized_training`
compares the arms in LiteRT.
"""

import ml_collections

from configs import finetune

ARMS = ("float32", "channel", "tensor")


def get_config() -> ml_collections.ConfigDict:
    """Returns the config that trains a network on in float32 and in two ways with 8 bits."""
    config = finetune.get_config()
    config.model.dropout = 0.0
    config.model.quantized = "none"
    config.data.update(name="fashion_mnist", validation=5000, image_size=28, train="")
    config.update(batch_size=128, eval_batch_size=500)
    config.duration = config.eval_every = config.checkpoint_every = "200 steps"
    config.optimization.update(learning_rate=0.01, backbone_rate=1.0)
    config.arms = tuple((arm, {} if arm == "float32" else {"model.quantized": arm}) for arm in ARMS)
    config.baseline = "float32"
    config.panels = (("training for 8 bits", "model.quantized", ARMS),)
    return config
