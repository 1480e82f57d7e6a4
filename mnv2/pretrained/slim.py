"""MobileNet and MobileNetV2 from checkpoints of TensorFlow's slim, `model.ckpt-N`.

Trained variables are taken from their moving averages where the checkpoint has them, as the
authors evaluated. 1001 classes: the first is background.
"""

from pathlib import Path

import numpy as np

from mnv2.models.mobilenet_v1 import CHANNELS as V1_CHANNELS
from mnv2.models.mobilenet_v2 import REPEATS
from mnv2.pretrained.network import Tensors, Variables, table, translate
from mnv2.pretrained.preprocessing import Preprocessing
from mnv2.runtime.errors import UserError

SCOPES = {"MobilenetV1/": "mobilenet_v1", "MobilenetV2/": "mobilenet_v2"}
FIELDS = {
    "mobilenet_v1": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.9997},
    "mobilenet_v2": {"padding": "same", "bn_epsilon": 1e-3, "bn_momentum": 0.997},
}
VARIABLES = Variables("/weights", "/biases", "/gamma", "/beta", "/moving_mean", "/moving_variance")
AVERAGE = "/ExponentialMovingAverage"
SLOTS = ("/RMSProp", "/RMSProp_1", "/Momentum", "/Adam", "/Adam_1")  # of optimisers


def find(path: Path) -> Path | None:
    """The prefix of a checkpoint's files, given that, one of them, or their folder."""
    if path.suffix in (".index", ".meta") or ".data-" in path.name:
        path = path.with_name(path.name.rpartition(".")[0])
    if path.is_dir():
        indices = sorted(path.glob("*.index"), key=lambda index: index.stat().st_mtime)
        return indices[-1].with_suffix("") if indices else None
    return path if path.with_name(path.name + ".index").exists() else None


def read(prefix: Path) -> Tensors:
    """Reads a checkpoint. Raises UserError if it is damaged or holds another network."""
    state = _load(prefix)
    scopes = [scope for scope in SCOPES if scope + _first(scope) in state]
    if len(scopes) != 1:
        raise UserError(f"{prefix} holds no MobileNet or MobileNetV2 of slim")
    (scope,) = scopes
    network = SCOPES[scope]
    blocks = len(V1_CHANNELS) if network == "mobilenet_v1" else sum(REPEATS)
    top = scope + "Logits/Conv2d_1c_1x1/weights" in state

    def layers(module: str) -> tuple[str, str]:
        layer = scope + (_v1 if network == "mobilenet_v1" else _v2)(module)
        return layer, f"{layer}/BatchNorm"

    names = table(network, blocks, layers, VARIABLES, top)
    inside = {name: array for name, array in state.items() if name.startswith(scope)}
    return Tensors(
        network, translate(inside, names, tensorflow_layout), names, FIELDS[network], SLIM
    )


SLIM = Preprocessing("slim", 0.875, (0.5,), (0.5,))


def tensorflow_layout(name: str, array: np.ndarray) -> np.ndarray:
    """Depthwise h w c 1 to h w 1 c; a classifier that is a 1x1 convolution to a matrix."""
    if name.endswith("depthwise/kernel") and array.ndim == 4:
        return array.transpose(0, 1, 3, 2)
    if name == "params/classifier/kernel" and array.ndim == 4:
        return array[0, 0]
    return array


def _load(prefix: Path) -> dict[str, np.ndarray]:
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(prefix))
        names = [name for name in reader.get_variable_to_shape_map() if not name.endswith(SLOTS)]
        averaged = {name.removesuffix(AVERAGE) for name in names if name.endswith(AVERAGE)}
        return {
            name.removesuffix(AVERAGE).replace("depthwise_weights", "weights"): np.asarray(
                reader.get_tensor(name)
            )
            for name in names
            if name not in averaged
        }
    except (tf.errors.OpError, ValueError, IndexError) as error:
        raise UserError(f"cannot read {prefix}: {str(error).splitlines()[0]}") from error


def _first(scope: str) -> str:
    return "Conv2d_0/weights" if scope == "MobilenetV1/" else "Conv/weights"


def _v1(module: str) -> str:
    if module == "stem":
        return "Conv2d_0"
    if module == "classifier":
        return "Logits/Conv2d_1c_1x1"
    block, part = module.removeprefix("block_").split("/")
    return f"Conv2d_{int(block) + 1}_{part}"


def _v2(module: str) -> str:
    ends = {"stem": "Conv", "last_conv": "Conv_1", "classifier": "Logits/Conv2d_1c_1x1"}
    if module in ends:
        return ends[module]
    block, part = module.removeprefix("block_").split("/")
    return f"expanded_conv{'' if block == '0' else '_' + block}/{part}"
