"""Networks with random weights, which need no compilation: for tests of what is exported."""

import numpy as np

from mnv2.models import create_model
from mnv2.preprocess.host import named_view
from mnv2.pretrained import Preprocessing, Pretrained
from tests.variables import random_variables

SHORT = (1, 2, 1, 0, 0, 0, 0)  # blocks in each row of V2: 4, one of them with a shortcut


def network(name="mobilenet_v2", size=(32, 32), channels=3, classes=4, **fields):
    """Returns a network whose tensors have the scale of trained ones, and its usage."""
    model = create_model(name, num_classes=classes, **fields)
    variables = random_variables(model, channels)
    names = tuple(f"kind {i}" for i in range(2 if classes == 1 else classes)) or None
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,),) * 2
    preprocess = Preprocessing(named_view("bilinear", 0.875), mean, std)
    return Pretrained(model, variables, preprocess, size, names)


def pixels(loaded, count=5):
    """Returns images of the network's size, uint8."""
    shape = (count, *loaded.image_size, loaded.channels)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
