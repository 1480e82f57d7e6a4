"""Networks with random weights, which need no compilation: for tests of what is exported."""

import jax
import jax.numpy as jnp
import numpy as np

from mnv2.models import create_model
from mnv2.pretrained import Preprocessing, Pretrained

SHORT = (1,) * 7  # blocks in each row of V2


def network(name="mobilenet_v2", size=(32, 32), channels=3, classes=4, **fields):
    """Returns a network whose tensors have the scale of trained ones, and its usage."""
    model = create_model(name, num_classes=classes, **fields)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *size, channels))))
    random = np.random.default_rng(0)

    def tensor(path, like):
        name = path[-1].key
        if name == "kernel":
            fan_in = np.prod(like.shape[:-1])
            return random.normal(0, np.sqrt(2 / fan_in), like.shape).astype(np.float32)
        if name in ("scale", "var"):
            return random.uniform(0.8, 1.2, like.shape).astype(np.float32)
        return random.normal(0, 0.1, like.shape).astype(np.float32)

    variables = jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(tensor, shapes))
    names = tuple(f"kind {i}" for i in range(2 if classes == 1 else classes)) or None
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,),) * 2
    preprocess = Preprocessing("bilinear", 0.875, mean, std)
    return Pretrained(model, variables, preprocess, size, names)


def pixels(loaded, count=5):
    """Returns images of the network's size, uint8."""
    shape = (count, *loaded.image_size, loaded.channels)
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
