"""Random weights that every framework can generate, and the results of PyTorch with them.

    python tests/pretrained/reference.py     # rewrites the JSON

It needs torch, torchvision, timm and transformers. For each network, the JSON holds its logits and
the names and shapes of its tensors. The weights are generated from the names, so they are not
stored.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("torch_reference.json")
CLASSES = 10
LABELS = (3, 8, 1, 0)
SHIFT = 3.0  # explained in tests/pretrained/gradients.py
GRADIENTS = ("torchvision 0.35", "timm mobilenetv1_100")
SIZE = (96, 80)
# The networks in the JSON, with their width multipliers.
WIDTHS = {
    "torchvision 0.35": 0.35, "torchvision 1.0": 1.0, "torchvision 1.4": 1.4,
    "timm mobilenetv2_050": 0.5, "timm mobilenetv2_100": 1.0, "timm mobilenetv2_140": 1.4,
    "timm mobilenetv2_110d": 1.1, "timm mobilenetv2_120d": 1.2, "timm mobilenetv1_100": 1.0,
    "transformers mobilenet_v1": 0.25, "transformers mobilenet_v2": 0.35,
}  # fmt: skip


def draw_weights(shapes, shift=0.0):
    """Returns a state dict of random weights, with running statistics other than 0 and 1.

    `shift` is added to the biases of batch norm.
    """
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
            constant = name.endswith("weight") or shift * ("classifier" not in name)
            value = constant + 0.1 * random.normal(size=shape)
        else:
            value = random.normal(size=shape) * (2 / np.prod(shape[1:])) ** 0.5
        state[name] = value if value.dtype == np.int64 else value.astype(np.float32)
    return state


def draw_images():
    """Returns four images, n h w c, in [0, 255]."""
    return np.random.default_rng(99).uniform(0, 255, (len(LABELS), *SIZE, 3)).astype(np.float32)


def gradients(network, images):
    """Returns the digest of each parameter's gradient in one training step.

    The loss is the cross-entropy with batch statistics; dropout is off.
    """
    import torch

    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    torch.nn.functional.cross_entropy(network(images), torch.tensor(LABELS)).backward()
    return {name: digest(p.grad.numpy()) for name, p in network.named_parameters()}


def digest(gradient):
    """Summarises a gradient by its norm and its inner product with a random direction."""
    direction = np.random.default_rng(7).normal(size=gradient.shape)
    return [float(np.linalg.norm(gradient)), float(np.sum(gradient * direction))]


def build(name):
    """Builds a network of PyTorch with random weights."""
    family, variant = name.split()
    if family == "timm":
        import timm

        return timm.create_model(variant, num_classes=CLASSES)
    if family == "torchvision":
        import torchvision

        return torchvision.models.mobilenet_v2(width_mult=WIDTHS[name], num_classes=CLASSES)
    import transformers

    kind = variant.replace("mobilenet_v", "MobileNetV")
    config = getattr(transformers, f"{kind}Config")
    network = getattr(transformers, f"{kind}ForImageClassification")
    return network(config(depth_multiplier=WIDTHS[name], num_labels=CLASSES))


def record(names):
    """Adds what PyTorch computes with networks to the JSON."""
    import torch

    reference = json.loads(FILE.read_text())
    for name in names:
        network = build(name)
        shapes = {key: list(tensor.shape) for key, tensor in network.state_dict().items()}
        state = draw_weights(shapes)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        # timm's MobileNetV1 and transformers have mean and std 0.5; the others those of ImageNet.
        half = ((0.5,) * 3, (0.5,) * 3)
        imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        has_half = "v1" in name or name.startswith("transformers")
        mean, std = map(torch.tensor, half if has_half else imagenet)
        images = ((torch.from_numpy(draw_images()) / 255 - mean) / std).permute(0, 3, 1, 2)
        with torch.no_grad():
            logits = network.eval()(images)
        logits = getattr(logits, "logits", logits)  # transformers returns an object
        reference[name] = {"shapes": shapes, "logits": logits.tolist()}
        if name in GRADIENTS:
            state = draw_weights(shapes, SHIFT)
            network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
            reference[name]["gradients"] = gradients(network, images)
    FILE.write_text(json.dumps(reference, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    record(WIDTHS)
