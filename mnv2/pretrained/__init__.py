"""Networks from weights that others trained.

>>> pretrained = load("mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224.h5")
>>> logits = pretrained.model.apply(pretrained.variables, pretrained.preprocess(images))

Files are read as arrays and never unpickled; neither Keras nor PyTorch need be installed, except
that `.pth` and `.pt` are read by PyTorch, tensors only.
"""

from pathlib import Path

from mnv2.errors import UserError
from mnv2.pretrained import keras, torch
from mnv2.pretrained.network import Pretrained as Pretrained
from mnv2.pretrained.network import assemble

READERS = {
    ".h5": keras.read,
    ".keras": keras.read,
    ".safetensors": torch.read,
    ".pth": torch.read,
    ".pt": torch.read,
}


def load(path: str | Path) -> Pretrained:
    """Builds the network that a file holds, with its weights.

    Reads `.h5`, `.weights.h5` and `.keras` files of keras.applications' MobileNet and MobileNetV2,
    with or without their top, also where the network is one layer of a larger model: then the
    network alone is taken. Reads `.safetensors`, `.pth` and `.pt` of MobileNetV2 under the names
    of torchvision, timm, d-li14 and tonylins, where the channels are rounded as in the paper.

    Raises UserError for a file that cannot be read, that holds another network, or in which a
    tensor is missing, has the wrong shape, or is one too many.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"no such file: {path}")
    if path.suffix not in READERS:
        raise UserError(f"unknown format {path.suffix!r} of {path}: known are {', '.join(READERS)}")
    return assemble(READERS[path.suffix](path), str(path))
