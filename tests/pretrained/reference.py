"""Random weights that two frameworks can draw alike, and what PyTorch computes with them.

    python tests/pretrained/reference.py     # needs torch, torchvision and timm; rewrites the JSON

The JSON holds, for each network, the names and shapes of its tensors and its logits; the weights
themselves follow from the names, so that they need not be stored.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("torch_reference.json")
CLASSES = 10
SIZE = (96, 80)


def draw_weights(shapes):
    """A state dict of random weights with batch statistics that are not 0 and 1."""
    state = {}
    for index, (name, shape) in enumerate(sorted(shapes.items())):
        random = np.random.default_rng(index)
        if name.endswith("num_batches_tracked"):
            value = np.zeros(shape, np.int64)
        elif name.endswith("running_var"):
            value = random.uniform(0.5, 2, shape)
        elif name.endswith("running_mean"):
            value = 0.2 * random.normal(size=shape)
        elif len(shape) == 1:
            value = (name.endswith("weight")) + 0.1 * random.normal(size=shape)
        else:
            value = random.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        state[name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return state


def draw_images():
    """Two images, b h w c, in [0, 255]."""
    return np.random.default_rng(99).uniform(0, 255, (2, *SIZE, 3)).astype(np.float32)


def main():
    import timm
    import torch
    import torchvision

    mean, std = (torch.tensor(v) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    images = (torch.from_numpy(draw_images()) / 255 - mean) / std
    networks = {
        f"torchvision {width}": torchvision.models.mobilenet_v2(
            width_mult=width, num_classes=CLASSES
        )
        for width in (0.35, 1.0, 1.4)
    } | {
        f"timm {name}": timm.create_model(name, num_classes=CLASSES)
        for name in ("mobilenetv2_050", "mobilenetv2_100", "mobilenetv2_140")
    }
    reference = {}
    for name, network in networks.items():
        shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        state = draw_weights(shapes)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        with torch.no_grad():
            logits = network.eval()(images.permute(0, 3, 1, 2))
        reference[name] = {"shapes": shapes, "logits": logits.tolist()}
    FILE.write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
